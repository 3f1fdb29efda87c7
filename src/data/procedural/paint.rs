//! From a scene to pixels. Each pixel is composed front to back: heart, rings of petals, stem and leaves, background. Edges are
//! antialiased by distance, so one sample per pixel is enough.

use super::maths::{Rgb, angle, coverage, floor, mix, scale, smooth, wave};
use super::scene::{Leaf, Ring, STEPS, Scene};

/// What has been composed so far, front to back.
struct Layers {
    colour: Rgb,
    /// Share of the pixel that is covered.
    cover: f32,
    /// Light that gets past what lies in front: soft shadows.
    light: f32,
}

impl Layers {
    #[inline]
    fn add(&mut self, colour: Rgb, cover: f32) {
        let share = (1.0 - self.cover) * cover;
        for (sum, value) in self.colour.iter_mut().zip(colour) {
            *sum += share * self.light * value;
        }
        self.cover += share;
    }

    #[inline]
    fn full(&self) -> bool {
        self.cover > 0.996
    }

    /// Darkens what lies behind an edge at `distance`.
    #[inline]
    fn cast(&mut self, distance: f32, reach: f32, depth: f32) {
        let near = (1.0 - distance.max(0.0) / reach).max(0.0);
        self.light *= 1.0 - depth * near * near;
    }
}

/// Colour (0 to 1, straight) and coverage by the flower of the pixel at (x, y), `pixel` wide. Where only the foreground is wanted, the
/// background is left out and the colour is that of the covered part.
pub(super) fn pixel(scene: &Scene, x: f32, y: f32, pixel: f32, cut_out: bool) -> (Rgb, f32) {
    let mut layers = Layers { colour: [0.0; 3], cover: 0.0, light: 1.0 };
    let (dx, dy) = (x - scene.x, y - scene.y);
    let reach = scene.radius + 0.18;
    if dx * dx + dy * dy < reach * reach {
        // Undo the foreshortening: into the plane of the flower.
        let along = (dx * scene.tilt.0 + dy * scene.tilt.1) * (scene.stretch - 1.0);
        let (fx, fy) = (dx + along * scene.tilt.0, dy + along * scene.tilt.1);
        flower(scene, fx, fy, pixel, &mut layers);
    }
    if !layers.full() {
        greenery(scene, x, y, pixel, &mut layers);
    }
    let cover = layers.cover;
    let mut colour = layers.colour;
    if cut_out {
        colour = if cover > 0.0 { scale(colour, 1.0 / cover) } else { [1.0; 3] };
    } else if !layers.full() {
        // Far behind: the flower's shadow hardly reaches it.
        layers.light = 0.7 + 0.3 * layers.light;
        layers.add(background(scene, x, y), 1.0);
        colour = layers.colour;
    }
    if cover > 0.0 || !cut_out {
        let vignette = 1.0 - scene.vignette * (x * x + y * y);
        for (value, exposure) in colour.iter_mut().zip(scene.exposure) {
            *value *= exposure * vignette;
        }
    }
    (colour, cover)
}

fn background(scene: &Scene, x: f32, y: f32) -> Rgb {
    let mut colour = mix(scene.top, scene.bottom, smooth(0.5 + 0.5 * y + scene.slant * x));
    for cloud in &scene.clouds {
        let (dx, dy) = (x - cloud.x, y - cloud.y);
        let q = 1.0 - (dx * dx + dy * dy) / (4.0 * cloud.radius * cloud.radius);
        if q > 0.0 {
            colour = mix(colour, cloud.colour, cloud.strength * q * q);
        }
    }
    for disc in &scene.bokeh {
        let (dx, dy) = (x - disc.x, y - disc.y);
        let q = (dx * dx + dy * dy) / (disc.radius * disc.radius);
        if q < 1.3 {
            // Brighter towards the rim, as lenses draw it, with a soft edge.
            let edge = ((1.3 - q) * 1.8).min(1.0);
            colour = mix(colour, disc.colour, disc.strength * edge * (0.7 + 0.3 * q));
        }
    }
    colour
}

fn flower(scene: &Scene, x: f32, y: f32, pixel: f32, layers: &mut Layers) {
    heart(scene, x, y, pixel, layers);
    for ring in &scene.rings {
        if layers.full() {
            return;
        }
        petals(scene, ring, x, y + ring.lift, pixel, layers);
    }
}

fn heart(scene: &Scene, x: f32, y: f32, pixel: f32, layers: &mut Layers) {
    let heart = &scene.heart;
    let y = y + heart.lift;
    let r = (x * x + y * y).sqrt();
    let distance = r - heart.radius;
    if let Some(stamens) = &heart.stamens
        && r < stamens.length + stamens.anther_radius + pixel
    {
        let position = (angle(x, y) - stamens.turn) * stamens.count;
        let nearest = floor(position + 0.5);
        // Small angles: across = r * angle. Every second one is shorter.
        let across = (position - nearest) / stamens.count * std::f32::consts::TAU * r;
        let length = if (nearest as i32) & 1 == 0 { stamens.length } else { stamens.length * 0.8 };
        let along = r - length;
        // What is thinner than a pixel is drawn a pixel wide, and fainter.
        let wide = stamens.anther_radius.max(0.5 * pixel);
        let faint = stamens.anther_radius / wide;
        let d = (across * across + along * along).sqrt() - wide;
        layers.add(stamens.anther, coverage(d, pixel) * faint);
        let thin = 0.008f32;
        let wide = thin.max(0.5 * pixel);
        if along < 0.0 {
            layers.add(
                stamens.filament,
                coverage(across.abs() - wide, pixel) * (thin / wide) * smooth(r / heart.radius - 0.6),
            );
        }
        layers.cast(d, 0.05, 0.25);
    }
    if distance < pixel {
        let (u, v) = (x / heart.radius, y / heart.radius);
        let out = (u * u + v * v).min(1.0);
        // A dome: its slope away from the light is dark.
        let shade = 0.95 + 0.25 * (u * scene.light.0 + v * scene.light.1) - 0.14 * out * out;
        let mut colour = scale(mix(heart.core, heart.rim, out), shade);
        // Florets show where they are wider than a pixel or so.
        let visible = (heart.floret_radius / pixel - 0.4).clamp(0.0, 1.0);
        if visible > 0.0 {
            let near = heart
                .florets
                .iter()
                .map(|f| (x - f[0]) * (x - f[0]) + (y - f[1]) * (y - f[1]))
                .fold(f32::MAX, f32::min);
            let t = 1.0 - near / (heart.floret_radius * heart.floret_radius);
            let tone =
                if t > 0.0 { mix(scale(colour, 0.7), scale(heart.floret, shade), t) } else { scale(colour, 0.62) };
            colour = mix(colour, tone, visible * 0.85);
        }
        layers.add(colour, coverage(distance, pixel));
    }
    layers.cast(distance, 0.10 + 0.25 * heart.radius, 0.38);
}

/// The two petals of a ring that can cover (x, y), front one first.
fn petals(scene: &Scene, ring: &Ring, x: f32, y: f32, pixel: f32, layers: &mut Layers) {
    let beyond = ring.length + 0.14;
    if x * x + y * y > beyond * beyond {
        return;
    }
    let count = ring.count as i32;
    let position = (angle(x, y) - ring.turn) * ring.count as f32;
    let nearest = floor(position + 0.5);
    let side = if position >= nearest { 1 } else { -1 };
    let first = (nearest as i32).rem_euclid(count);
    let second = (first + side).rem_euclid(count);
    let (a, b) = (first as usize, second as usize);
    // Heights are all equal in a pinwheel, where the next one round lies in front.
    let (ha, hb) = (ring.petals[a].height, ring.petals[b].height);
    let second_in_front = if ha == hb { side == 1 } else { hb > ha };
    let order = if second_in_front { [b, a] } else { [a, b] };
    for index in order {
        petal(scene, ring, index, x, y, pixel, layers);
        if layers.full() {
            return;
        }
    }
}

fn petal(scene: &Scene, ring: &Ring, index: usize, x: f32, y: f32, pixel: f32, layers: &mut Layers) {
    let petal = &ring.petals[index];
    let length = ring.length * petal.length;
    // Along and across, relative to the length.
    let inverse = 1.0 / length;
    let (u, v) = ((x * petal.cos + y * petal.sin) * inverse, (y * petal.cos - x * petal.sin) * inverse);
    if u < -0.05 || v.abs() > ring.widest + 0.2 {
        return;
    }
    // A notch: near the middle of the tip, points count as further out than they are.
    let u = if ring.notch > 0.0 {
        let middle = (1.0 - v.abs() / (0.55 * ring.widest)).max(0.0);
        u + ring.notch * middle * smooth(u * 2.0 - 1.0)
    } else {
        u
    };
    let at = u.clamp(0.0, 1.0) * STEPS as f32;
    let i = at as usize; // at most STEPS; the tables have one entry more
    let part = at - i as f32;
    let width = ring.width[i] + (ring.width[i + 1] - ring.width[i]) * part;
    let slope = (ring.width[i + 1] - ring.width[i]) * STEPS as f32;
    // Distance across, corrected for the slope of the outline. Where the outline is steep that holds only beside it: further out at
    // the tip and the foot, the distance to the first or last shoulder counts.
    const STEP: f32 = 1.0 / STEPS as f32;
    let (first, last) = (ring.width[1], ring.width[STEPS - 1]);
    let distance = if u > 1.0 - STEP {
        if v.abs() > last {
            hypot(u - 1.0 + STEP, v.abs() - last)
        } else {
            let steep = last / STEP;
            (u - 1.0) * steep / (1.0 + steep * steep).sqrt() + v.abs() / (1.0 + steep * steep).sqrt()
        }
    } else if u < STEP && v.abs() > first {
        hypot(u - STEP, v.abs() - first)
    } else {
        (v.abs() - width) / (1.0 + slope * slope).sqrt()
    } * length;
    let cover = coverage(distance, pixel);
    if cover > 0.0 {
        let mut colour = mix(ring.colours[i], ring.colours[i + 1], part);
        let s = (v / width.max(1e-3)).clamp(-1.0, 1.0);
        if let Some((stripe, strength)) = ring.stripe {
            colour = mix(colour, stripe, strength * (1.0 - s.abs() * 2.2).max(0.0) * smooth(1.15 - u));
        }
        // Light along and across the petal: it is domed, and rises from the heart.
        let along = petal.cos * scene.light.0 + petal.sin * scene.light.1;
        let across = petal.cos * scene.light.1 - petal.sin * scene.light.0;
        let mut shade = petal.tone * (1.0 + 0.10 * along * (0.3 + u) + ring.dome * s * across) - 0.10 * s * s;
        shade *= 0.72 + 0.28 * smooth(u * 2.2);
        // Veins and the crease fade out where they are finer than pixels.
        let period = 2.0 * width * length / (ring.veins * pixel);
        let visible = ((period - 1.5) * 0.5).clamp(0.0, 1.0);
        if visible > 0.0 {
            let veins = wave(s * ring.veins * 0.5 + 0.5 * u * s.abs());
            shade -= visible * ring.vein_depth * (0.5 - 0.5 * veins) * smooth(1.2 - u);
        }
        shade -= 0.09 * (1.0 - s.abs() * 5.0).max(0.0) * (1.0 - u);
        if ring.speckles && u > 0.12 && u < 0.62 {
            colour = mix(colour, [0.40, 0.08, 0.10], speckle(u, s, index, length / pixel));
        }
        layers.add(scale(colour, shade), cover);
    }
    // Its shadow on what lies behind.
    layers.cast(distance, 0.10, 0.30);
}

#[inline]
fn hypot(x: f32, y: f32) -> f32 {
    (x * x + y * y).sqrt()
}

/// Dots on a slanted grid along a petal, larger towards the base.
fn speckle(u: f32, s: f32, index: usize, pixels: f32) -> f32 {
    let (gu, gs) = (u * 13.0 + index as f32 * 0.37, s * 3.2 + floor(u * 13.0) * 0.5);
    let (du, ds) = (gu - floor(gu) - 0.5, gs - floor(gs) - 0.5);
    let d = (du * du + ds * ds).sqrt();
    let visible = (pixels / 26.0 - 0.5).clamp(0.0, 1.0);
    visible * 0.75 * ((0.36 * (1.2 - u) - d) * 8.0).clamp(0.0, 1.0)
}

fn greenery(scene: &Scene, x: f32, y: f32, pixel: f32, layers: &mut Layers) {
    if let Some(stem) = &scene.stem {
        let t = y - scene.y;
        if t > 0.0 {
            let middle = scene.x + stem.a * t + stem.b * t * t;
            let slope = stem.a + 2.0 * stem.b * t;
            let across = (x - middle) / (1.0 + slope * slope).sqrt();
            let distance = across.abs() - stem.half_width;
            if distance < pixel {
                let round = across / stem.half_width;
                layers.add(
                    scale(stem.colour, 0.92 + 0.3 * round * scene.light.0 - 0.2 * round * round),
                    coverage(distance, pixel),
                );
            }
            layers.cast(distance, 0.08, 0.25);
        }
    }
    for leaf in &scene.leaves {
        if layers.full() {
            return;
        }
        blade(scene, leaf, x, y, pixel, layers);
    }
}

fn blade(scene: &Scene, leaf: &Leaf, x: f32, y: f32, pixel: f32, layers: &mut Layers) {
    let (dx, dy) = (x - leaf.x, y - leaf.y);
    let inverse = 1.0 / leaf.length;
    let (u, v) = ((dx * leaf.cos + dy * leaf.sin) * inverse, (dy * leaf.cos - dx * leaf.sin) * inverse);
    if !(-0.1..=1.15).contains(&u) || v.abs() > leaf.width + 0.2 {
        return;
    }
    let inside = u.clamp(0.0, 1.0);
    // Half width w 4 u (1 - u) skewed to the foot: widest before the middle, pointed.
    let bend = 1.35 - 0.7 * inside;
    let width = leaf.width * 4.0 * inside * (1.0 - inside) * bend;
    let slope = leaf.width * 4.0 * ((1.0 - 2.0 * inside) * bend - 0.7 * inside * (1.0 - inside));
    let outside = (u - inside).abs();
    let distance = ((v.abs() - width) / (1.0 + slope * slope).sqrt() + outside) * leaf.length;
    let edge = pixel + leaf.blur;
    let cover = coverage(distance, edge);
    if cover > 0.0 {
        let s = v / width.max(0.02);
        let across = leaf.cos * scene.light.1 - leaf.sin * scene.light.0;
        // Two halves folded along the midrib: one faces the light.
        let fold = 0.5 + 0.5 * across * (s * 4.0).clamp(-1.0, 1.0);
        let mut colour = mix(leaf.dark, leaf.light, fold * 0.8 + 0.1);
        let sharp = (1.0 - leaf.blur * 14.0).max(0.0);
        let visible = ((leaf.length / pixel - 10.0) / 30.0).clamp(0.0, 1.0) * sharp;
        if visible > 0.0 {
            let veins = wave((u * 9.0) - v.abs() * 14.0);
            colour = scale(colour, 1.0 + visible * 0.06 * veins);
            let rib = (1.0 - (v.abs() - 0.006) * leaf.length / pixel).clamp(0.0, 1.0);
            colour = mix(colour, mix(leaf.light, [0.8, 0.9, 0.55], 0.3), rib * visible * 0.6 * (1.0 - inside));
        }
        layers.add(colour, cover);
    }
    layers.cast(distance, 0.12, 0.22);
}
