//! What is in a picture: a flower of one of eight kinds, its stem and leaves, the blurred background, the light.
//!
//! Lengths are in half pictures: the picture spans -1 to 1, y downwards. Everything is drawn from one Philox stream, in a fixed order.

use super::maths::{Rgb, cos_sin, mix, quarter_power, scale};
use crate::rng::Reader;

pub(super) const MAX_PETALS: usize = 24;
/// Intervals of the tables along a petal.
pub(super) const STEPS: usize = 32;

/// One petal of a ring.
#[derive(Clone, Copy, Default)]
pub(super) struct Petal {
    pub cos: f32,
    pub sin: f32,
    /// Relative to the length of the ring.
    pub length: f32,
    /// Brightness.
    pub tone: f32,
    /// The higher one lies in front.
    pub height: f32,
}

/// A ring of equal petals.
pub(super) struct Ring {
    pub count: usize,
    pub turn: f32,
    pub length: f32,
    pub petals: [Petal; MAX_PETALS],
    /// Half width along the petal, relative to its length, and its slope.
    pub width: [f32; STEPS + 2],
    pub widest: f32,
    pub colours: [Rgb; STEPS + 2],
    pub notch: f32,
    /// Veins across the whole width, and how dark.
    pub veins: f32,
    pub vein_depth: f32,
    /// How strongly the petal is domed across: shading, not shape.
    pub dome: f32,
    /// A stripe along the middle: colour and strength.
    pub stripe: Option<(Rgb, f32)>,
    /// Dark speckles near the base.
    pub speckles: bool,
    /// Offset towards the viewer's top in a tilted flower.
    pub lift: f32,
}

/// What sits in the middle.
pub(super) struct Heart {
    pub radius: f32,
    pub rim: Rgb,
    pub core: Rgb,
    /// Florets in a sunflower spiral: position, radius; empty for a plain dome.
    pub florets: Vec<[f32; 2]>,
    pub floret_radius: f32,
    pub floret: Rgb,
    pub stamens: Option<Stamens>,
    pub lift: f32,
}

pub(super) struct Stamens {
    pub count: f32,
    pub turn: f32,
    pub length: f32,
    pub filament: Rgb,
    pub anther: Rgb,
    pub anther_radius: f32,
}

/// A leaf: a blade from its foot along (cos, sin).
pub(super) struct Leaf {
    pub x: f32,
    pub y: f32,
    pub cos: f32,
    pub sin: f32,
    pub length: f32,
    pub width: f32,
    pub dark: Rgb,
    pub light: Rgb,
    /// Softness of the edge: leaves behind the flower are out of focus.
    pub blur: f32,
}

/// The stem x = x0 + a t + b t^2, t downwards from the flower.
pub(super) struct Stem {
    pub a: f32,
    pub b: f32,
    pub half_width: f32,
    pub colour: Rgb,
}

/// A disc of light out of focus.
pub(super) struct Bokeh {
    pub x: f32,
    pub y: f32,
    pub radius: f32,
    pub colour: Rgb,
    pub strength: f32,
}

pub(super) struct Scene {
    pub top: Rgb,
    pub bottom: Rgb,
    pub slant: f32,
    pub clouds: Vec<Bokeh>,
    pub bokeh: Vec<Bokeh>,
    pub x: f32,
    pub y: f32,
    /// Radius that holds all petals.
    pub radius: f32,
    /// Direction of the tilt and 1 / foreshortening.
    pub tilt: (f32, f32),
    pub stretch: f32,
    /// Direction towards the light.
    pub light: (f32, f32),
    pub rings: Vec<Ring>,
    pub heart: Heart,
    pub stem: Option<Stem>,
    pub leaves: Vec<Leaf>,
    pub exposure: Rgb,
    pub vignette: f32,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Daisy,
    Primrose,
    Lily,
    Poppy,
    Dahlia,
    Sunflower,
    Camellia,
    Clematis,
}

const WHITE: Rgb = [0.98, 0.97, 0.94];
const CREAM: Rgb = [0.99, 0.93, 0.76];
const YELLOW: Rgb = [0.99, 0.83, 0.16];
const ORANGE: Rgb = [0.98, 0.55, 0.13];
const CORAL: Rgb = [0.97, 0.46, 0.38];
const RED: Rgb = [0.86, 0.13, 0.13];
const CRIMSON: Rgb = [0.66, 0.06, 0.22];
const PINK: Rgb = [0.96, 0.55, 0.70];
const BLUSH: Rgb = [0.99, 0.82, 0.84];
const MAGENTA: Rgb = [0.84, 0.20, 0.58];
const LILAC: Rgb = [0.77, 0.62, 0.92];
const VIOLET: Rgb = [0.48, 0.25, 0.75];
const BLUE: Rgb = [0.32, 0.42, 0.88];
const SKY: Rgb = [0.60, 0.74, 0.97];

/// Draws with a little language of its own: the generator plus what pictures ask of it.
struct Draw<'a>(&'a mut Reader);

impl Draw<'_> {
    fn range(&mut self, low: f32, high: f32) -> f32 {
        self.0.range(low, high)
    }

    fn chance(&mut self, p: f32) -> bool {
        self.0.uniform() < p
    }

    fn count(&mut self, low: u32, high: u32) -> usize {
        (low + self.0.below(high - low + 1)) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.0.below(from.len() as u32) as usize]
    }

    /// A colour near `c`.
    fn near(&mut self, c: Rgb, by: f32) -> Rgb {
        let all = self.range(-by, by);
        c.map(|v| (v + all * 0.6 + self.range(-by, by) * 0.6).clamp(0.0, 1.0))
    }
}

/// How the petals of a kind look; rings differ by length.
struct Habit {
    count: usize,
    half_width: f32,
    /// Powers in quarters of u and 1 - u in the outline.
    foot: u32,
    tip: u32,
    colours: [Rgb; 3],
    veins: f32,
    vein_depth: f32,
    dome: f32,
    notch: f32,
    stripe: Option<(Rgb, f32)>,
    speckles: bool,
    /// Uneven in angle, length and tone.
    wild: f32,
    /// Each petal over its neighbour, all the way round.
    pinwheel: bool,
}

impl Habit {
    fn ring(&self, draw: &mut Draw, length: f32, turn: f32, lift: f32, brightness: f32) -> Ring {
        let spacing = 1.0 / self.count as f32;
        let mut petals = [Petal::default(); MAX_PETALS];
        for (k, petal) in petals.iter_mut().take(self.count).enumerate() {
            let at = turn + spacing * (k as f32 + draw.range(-0.16, 0.16) * self.wild);
            let (cos, sin) = cos_sin(at);
            let tone = brightness * (1.0 + draw.range(-0.07, 0.07) * self.wild);
            let height = if self.pinwheel { 0.0 } else { draw.0.uniform() };
            *petal = Petal { cos, sin, length: 1.0 - draw.range(0.0, 0.14) * self.wild, tone, height };
        }
        let mut width = [0.0; STEPS + 2];
        let mut colours = [[0.0; 3]; STEPS + 2];
        let outline = |u: f32| quarter_power(u, self.foot) * quarter_power(1.0 - u, self.tip);
        // The widest point of u^f (1-u)^t is at f / (f + t).
        let peak = outline(self.foot as f32 / (self.foot + self.tip) as f32);
        for i in 0..=STEPS {
            let u = i as f32 / STEPS as f32;
            width[i] = self.half_width * outline(u) / peak;
            let [inner, middle, outer] = self.colours;
            colours[i] = if u < 0.45 { mix(inner, middle, u / 0.45) } else { mix(middle, outer, (u - 0.45) / 0.55) };
        }
        colours[STEPS + 1] = colours[STEPS];
        Ring {
            count: self.count,
            turn,
            length,
            petals,
            width,
            widest: self.half_width,
            colours,
            notch: self.notch,
            veins: self.veins,
            vein_depth: self.vein_depth,
            dome: self.dome,
            stripe: self.stripe,
            speckles: self.speckles,
            lift,
        }
    }
}

impl Scene {
    pub fn new(random: &mut Reader) -> Scene {
        let draw = &mut Draw(random);
        let kind = draw.pick(&[
            Kind::Daisy,
            Kind::Primrose,
            Kind::Primrose,
            Kind::Lily,
            Kind::Poppy,
            Kind::Dahlia,
            Kind::Sunflower,
            Kind::Camellia,
            Kind::Clematis,
        ]);
        let radius = draw.range(0.62, 0.86);
        let (x, y) = (draw.range(-0.10, 0.10), draw.range(-0.16, 0.06));
        let foreshortening = 1.0 - draw.0.uniform() * draw.0.uniform() * 0.38;
        let tilt = cos_sin(0.25 + draw.range(-0.1, 0.1));
        let depth = (1.0 - foreshortening * foreshortening).sqrt();
        let light = cos_sin(-0.25 + draw.range(-0.14, 0.14));
        let (rings, heart) = flower(draw, kind, radius, depth);
        let accent = rings.last().map_or(WHITE, |ring| ring.colours[STEPS / 2]);
        let mut scene = Scene {
            top: [0.0; 3],
            bottom: [0.0; 3],
            slant: draw.range(-0.35, 0.35),
            clouds: Vec::new(),
            bokeh: Vec::new(),
            x,
            y,
            radius: radius * 1.02,
            tilt,
            stretch: 1.0 / foreshortening,
            light,
            rings,
            heart,
            stem: None,
            leaves: Vec::new(),
            exposure: [1.0; 3],
            vignette: draw.range(0.03, 0.16),
        };
        scene.background(draw, accent);
        scene.greenery(draw);
        let brightness = draw.range(0.93, 1.05);
        let warmth = draw.range(-0.035, 0.035);
        scene.exposure = [brightness + warmth, brightness, brightness - warmth];
        scene
    }

    fn background(&mut self, draw: &mut Draw, accent: Rgb) {
        let roll = draw.0.uniform();
        let (top, bottom): (Rgb, Rgb) = if roll < 0.34 {
            ([0.24, 0.40, 0.20], [0.09, 0.22, 0.10]) // foliage
        } else if roll < 0.54 {
            ([0.66, 0.76, 0.42], [0.36, 0.54, 0.24]) // meadow in the sun
        } else if roll < 0.68 {
            ([0.56, 0.74, 0.93], [0.62, 0.76, 0.62]) // sky over grass
        } else if roll < 0.80 {
            ([0.42, 0.30, 0.52], [0.88, 0.58, 0.44]) // dusk
        } else if roll < 0.92 {
            ([0.06, 0.10, 0.11], [0.03, 0.06, 0.05]) // shade
        } else {
            ([0.86, 0.83, 0.77], [0.70, 0.68, 0.62]) // a wall
        };
        self.top = draw.near(top, 0.06);
        self.bottom = draw.near(bottom, 0.06);
        let shine = (self.top[1] + self.bottom[1]) * 0.5;
        for _ in 0..draw.count(2, 4) {
            let tint = if draw.chance(0.5) { scale(self.bottom, 0.55) } else { mix(self.top, [0.9, 0.95, 0.6], 0.45) };
            let (x, y) = (draw.range(-1.2, 1.2), draw.range(-1.2, 1.2));
            self.clouds.push(Bokeh {
                x,
                y,
                radius: draw.range(0.35, 0.9),
                colour: tint,
                strength: draw.range(0.3, 0.75),
            });
        }
        for _ in 0..draw.count(0, 7) {
            let warm = draw.pick(&[[1.0, 0.96, 0.75], [0.85, 0.95, 0.6], accent]);
            let colour = mix(self.top, warm, draw.range(0.35, 0.8));
            let (x, y) = (draw.range(-1.05, 1.05), draw.range(-1.05, 0.7));
            let strength = draw.range(0.18, 0.5) * if shine < 0.2 { 0.6 } else { 1.0 };
            self.bokeh.push(Bokeh { x, y, radius: draw.range(0.07, 0.24), colour, strength });
        }
    }

    fn greenery(&mut self, draw: &mut Draw) {
        let green = draw.pick(&[[0.28, 0.50, 0.17], [0.20, 0.42, 0.18], [0.38, 0.55, 0.22], [0.24, 0.44, 0.28]]);
        let green = draw.near(green, 0.05);
        let mut leaf = |draw: &mut Draw, x: f32, y: f32, turns: f32, length: f32, blur: f32| {
            let (cos, sin) = cos_sin(turns);
            let shade = draw.range(0.8, 1.12);
            self.leaves.push(Leaf {
                x,
                y,
                cos,
                sin,
                length,
                width: draw.range(0.15, 0.25),
                dark: scale(green, 0.62 * shade),
                light: scale(mix(green, [0.75, 0.85, 0.4], 0.22), 1.05 * shade),
                blur,
            });
        };
        // Leaves on the stem lie in front of those behind the flower.
        let stem = draw.chance(0.8).then(|| Stem {
            a: draw.range(-0.22, 0.22),
            b: draw.range(-0.25, 0.25),
            half_width: draw.range(0.022, 0.042),
            colour: scale(green, 0.95),
        });
        if let Some(stem) = &stem {
            for side in [-1.0f32, 1.0] {
                if draw.chance(0.6) {
                    let t = draw.range(0.75, 1.05);
                    let turns = 0.25 - side * draw.range(0.12, 0.28);
                    let length = draw.range(0.5, 0.85);
                    leaf(draw, self.x + stem.a * t + stem.b * t * t, self.y + t, turns, length, 0.0);
                }
            }
        }
        for _ in 0..draw.count(0, 3) {
            // From behind the flower into the corners.
            let turns = draw.pick(&[0.09f32, 0.41, 0.59, 0.91]) + draw.range(-0.06, 0.06);
            let length = self.radius * draw.range(1.25, 1.6);
            let blur = draw.range(0.02, 0.08);
            leaf(draw, self.x, self.y, turns, length, blur);
        }
        self.stem = stem;
    }
}

/// Petals (front ring first) and heart of a flower.
fn flower(draw: &mut Draw, kind: Kind, radius: f32, depth: f32) -> (Vec<Ring>, Heart) {
    let turn = draw.0.uniform();
    let palette: &[Rgb] = match kind {
        Kind::Daisy => &[WHITE, WHITE, CREAM, BLUSH, PINK, LILAC, YELLOW, CORAL, SKY],
        Kind::Primrose => &[PINK, WHITE, YELLOW, LILAC, BLUE, MAGENTA, BLUSH, CORAL, SKY, VIOLET, RED],
        Kind::Lily => &[ORANGE, WHITE, PINK, YELLOW, CORAL, BLUSH, CRIMSON],
        Kind::Poppy => &[RED, RED, ORANGE, CORAL, WHITE, YELLOW, PINK],
        Kind::Dahlia => &[MAGENTA, RED, CRIMSON, ORANGE, YELLOW, LILAC, VIOLET, CORAL, PINK, WHITE],
        Kind::Sunflower => &[YELLOW, [0.99, 0.72, 0.10], [0.96, 0.62, 0.10], [0.99, 0.90, 0.35]],
        Kind::Camellia => &[PINK, RED, WHITE, BLUSH, CRIMSON, CORAL, CREAM, MAGENTA],
        Kind::Clematis => &[VIOLET, BLUE, LILAC, MAGENTA, WHITE, PINK, SKY],
    };
    let base = draw.pick(palette);
    let base = draw.near(base, 0.05);
    let pale = base[1] > 0.75;
    let deep = scale(base, if pale { 0.88 } else { 0.68 });
    let glow = mix(base, [1.0, 1.0, 0.9], 0.35);
    let golden: Rgb = [0.96, 0.74, 0.16];
    let lime: Rgb = [0.72, 0.80, 0.32];
    let mut habit = Habit {
        count: 5,
        half_width: 0.4,
        foot: 2,
        tip: 1,
        colours: [deep, base, glow],
        veins: 6.0,
        vein_depth: 0.06,
        dome: draw.range(0.10, 0.22),
        notch: 0.0,
        stripe: None,
        speckles: false,
        wild: draw.range(0.4, 1.0),
        pinwheel: false,
    };
    // Lengths of the rings, front first.
    let mut lengths: Vec<f32> = vec![1.0];
    let (heart_radius, mut rim, mut core);
    let mut florets = 0;
    let mut stamens = None;
    let mut twist = 0.5;
    let stamen = |count: f32, length: f32, filament: Rgb, anther: Rgb| Stamens {
        count,
        turn,
        length: length * radius,
        filament,
        anther,
        anther_radius: 0.032 * radius,
    };
    match kind {
        Kind::Daisy => {
            habit.count = draw.count(12, 20);
            habit.half_width = draw.range(0.86, 1.12) * std::f32::consts::PI / habit.count as f32;
            (habit.foot, habit.tip) = (2, 1);
            habit.veins = 3.0;
            if draw.chance(0.6) {
                lengths = vec![0.90, 1.0];
            }
            heart_radius = draw.range(0.22, 0.31);
            (rim, core) = (draw.near([0.93, 0.66, 0.10], 0.05), draw.near([0.99, 0.82, 0.22], 0.04));
            if draw.chance(0.15) {
                (rim, core) = ([0.30, 0.17, 0.10], [0.45, 0.30, 0.12]);
            }
            florets = 70;
        }
        Kind::Primrose => {
            habit.count = draw.pick(&[5, 5, 5, 5, 4, 6]);
            habit.half_width = draw.range(0.36, 0.50) * 5.0 / habit.count as f32;
            (habit.foot, habit.tip) = (draw.count(3, 4) as u32, draw.count(1, 2) as u32);
            habit.notch = if draw.chance(0.5) { draw.range(0.04, 0.15) } else { 0.0 };
            let eye = draw.pick(&[WHITE, golden, lime, scale(base, 0.5), CRIMSON]);
            habit.colours = [eye, base, if draw.chance(0.5) { glow } else { scale(base, 0.9) }];
            habit.pinwheel = draw.chance(0.5);
            habit.vein_depth = 0.08;
            habit.veins = 7.0;
            heart_radius = draw.range(0.07, 0.12);
            (rim, core) = (golden, lime);
            if draw.chance(0.7) {
                stamens = Some(stamen(
                    draw.pick(&[5.0, 8.0, 10.0, 14.0]),
                    draw.range(0.2, 0.34),
                    mix(base, WHITE, 0.6),
                    golden,
                ));
            }
        }
        Kind::Lily => {
            habit.count = 3;
            habit.half_width = draw.range(0.21, 0.30);
            (habit.foot, habit.tip) = (3, draw.count(3, 4) as u32);
            habit.colours = [draw.pick(&[lime, YELLOW, deep, WHITE]), base, draw.pick(&[base, glow, deep])];
            habit.speckles = draw.chance(0.6);
            habit.stripe = draw.chance(0.6).then_some((if pale { CORAL } else { glow }, 0.45));
            habit.wild = 0.35;
            habit.dome = 0.26;
            lengths = vec![1.0, 0.97];
            heart_radius = 0.05;
            (rim, core) = (lime, lime);
            stamens = Some(stamen(
                6.0,
                draw.range(0.36, 0.5),
                mix(lime, WHITE, 0.4),
                draw.pick(&[[0.45, 0.20, 0.07], golden, ORANGE]),
            ));
        }
        Kind::Poppy => {
            habit.count = 3; // two rings of two look like a propeller
            habit.half_width = draw.range(0.56, 0.72);
            (habit.foot, habit.tip) = (draw.count(2, 3) as u32, 2);
            habit.notch = draw.range(0.0, 0.06);
            let blotch = if pale || draw.chance(0.4) { golden } else { [0.10, 0.05, 0.09] };
            habit.colours = [blotch, base, glow];
            habit.veins = 11.0;
            habit.vein_depth = 0.10;
            lengths = vec![0.92, 1.0];
            heart_radius = draw.range(0.09, 0.14);
            (rim, core) = ([0.36, 0.42, 0.18], [0.62, 0.66, 0.34]);
            let anther = if pale { golden } else { [0.16, 0.09, 0.16] };
            stamens = Some(stamen(draw.pick(&[16.0, 20.0, 24.0]), draw.range(0.20, 0.28), anther, anther));
        }
        Kind::Dahlia => {
            habit.count = draw.count(10, 16);
            habit.half_width = draw.range(1.0, 1.3) * std::f32::consts::PI / habit.count as f32;
            (habit.foot, habit.tip) = (2, 2);
            habit.colours = [scale(base, 0.55), base, if draw.chance(0.3) { WHITE } else { glow }];
            habit.veins = 2.0;
            habit.dome = 0.3;
            habit.wild *= 0.6;
            lengths = vec![0.34, 0.56, 0.79, 1.0];
            heart_radius = draw.range(0.10, 0.16);
            (rim, core) = if draw.chance(0.5) { (golden, CREAM) } else { (scale(base, 0.5), scale(base, 0.75)) };
            florets = 24;
        }
        Kind::Sunflower => {
            habit.count = draw.count(15, 21);
            habit.half_width = draw.range(0.85, 1.05) * std::f32::consts::PI / habit.count as f32;
            (habit.foot, habit.tip) = (2, 2);
            habit.colours = [[0.86, 0.45, 0.07], base, mix(base, [1.0, 0.95, 0.5], 0.4)];
            habit.veins = 3.0;
            lengths = vec![0.9, 1.0];
            heart_radius = draw.range(0.36, 0.46);
            (rim, core) =
                ([0.34, 0.19, 0.07], draw.pick(&[[0.20, 0.11, 0.05], [0.45, 0.36, 0.12], [0.30, 0.24, 0.08]]));
            florets = 120;
        }
        Kind::Camellia => {
            habit.count = draw.count(5, 7);
            habit.half_width = draw.range(0.50, 0.62) * 6.0 / habit.count as f32;
            (habit.foot, habit.tip) = (3, 2);
            habit.notch = draw.range(0.0, 0.07);
            habit.colours = [scale(base, 0.62), base, glow];
            habit.pinwheel = draw.chance(0.6);
            habit.veins = 6.0;
            habit.vein_depth = 0.04;
            lengths = vec![0.32, 0.54, 0.77, 1.0];
            heart_radius = draw.range(0.06, 0.12);
            (rim, core) = if draw.chance(0.5) { (golden, YELLOW) } else { (scale(base, 0.6), scale(base, 0.8)) };
            twist = draw.range(0.35, 0.65);
        }
        Kind::Clematis => {
            habit.count = draw.count(6, 8);
            habit.half_width = draw.range(0.24, 0.31) * 7.0 / habit.count as f32;
            (habit.foot, habit.tip) = (3, 3);
            habit.colours = [mix(base, WHITE, 0.35), base, deep];
            habit.stripe = draw.chance(0.7).then(|| (draw.pick(&[MAGENTA, WHITE, LILAC]), 0.5));
            habit.veins = 8.0;
            heart_radius = 0.07;
            (rim, core) = (lime, CREAM);
            stamens = Some(stamen(
                draw.pick(&[14.0, 18.0]),
                draw.range(0.22, 0.30),
                CREAM,
                draw.pick(&[CREAM, [0.45, 0.18, 0.32], golden]),
            ));
        }
    }
    let rings = lengths.len();
    let rings = lengths
        .iter()
        .enumerate()
        .map(|(i, length)| {
            let back = i as f32 / rings as f32; // 0 in front
            let turn = turn + twist * i as f32 / habit.count as f32;
            habit.ring(draw, length * radius, turn, depth * radius * 0.12 * (1.0 - back), 1.0 - 0.13 * back)
        })
        .collect();
    let heart_radius = heart_radius * radius;
    let heart = Heart {
        radius: heart_radius,
        rim,
        core,
        florets: (0..florets)
            .map(|i| {
                // The golden angle, radius as the square root: seeds of a sunflower.
                let (cos, sin) = cos_sin(i as f32 * 0.381_966);
                let r = heart_radius * ((i as f32 + 0.5) / florets as f32).sqrt();
                [r * cos, r * sin]
            })
            .collect(),
        floret_radius: if florets > 0 { heart_radius * 0.95 / (florets as f32).sqrt() } else { 0.0 },
        floret: mix(core, [1.0, 0.9, 0.6], 0.5),
        stamens,
        lift: depth * radius * 0.16,
    };
    (rings, heart)
}
