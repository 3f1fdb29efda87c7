//! The few functions that the pictures need, from IEEE additions, multiplications, divisions and square roots alone: the same bits on
//! every machine, which a system's sine does not promise.

/// Red, green, blue, 0 to 1, as displayed (no linear light: mixing looks right to the eye and costs nothing).
pub(super) type Rgb = [f32; 3];

/// The integer at or below `x`, for |x| < 2^31. Baseline x86-64 has no instruction for `f32::floor`, which is a
/// library call there.
#[inline]
pub(super) fn floor(x: f32) -> f32 {
    let whole = x as i32 as f32;
    if whole > x { whole - 1.0 } else { whole }
}

/// (cos, sin) of an angle in turns; error below 2e-6.
pub(super) fn cos_sin(turns: f32) -> (f32, f32) {
    let quarter = floor(turns * 4.0 + 0.5);
    let t = (turns * 4.0 - quarter) * std::f32::consts::FRAC_PI_2;
    let z = t * t;
    let s = t * (1.0 + z * (-0.166_666_67 + z * (0.008_333_333 + z * -1.984_127e-4)));
    let c = 1.0 + z * (-0.5 + z * (0.041_666_668 + z * (-0.001_388_888_9 + z * 2.480_158_7e-5)));
    match (quarter as i32).rem_euclid(4) {
        0 => (c, s),
        1 => (-s, c),
        2 => (-c, -s),
        _ => (s, -c),
    }
}

/// Angle of (x, y) in turns, in [-0.5, 0.5]; error below 3e-6 turns.
#[inline]
pub(super) fn angle(x: f32, y: f32) -> f32 {
    let (ax, ay) = (x.abs(), y.abs());
    let (small, large) = (ax.min(ay), ax.max(ay).max(1e-12));
    let q = small / large;
    let z = q * q;
    // Odd polynomial of atan on [0, 1] (Abramowitz and Stegun 4.4.49), divided by a turn.
    let a = q * (0.159_133_61 + z * (-0.052_568_8 + z * (0.028_670_33 + z * (-0.013_549_34 + z * 0.003_316_007))));
    let a = if ay > ax { 0.25 - a } else { a };
    let a = if x < 0.0 { 0.5 - a } else { a };
    if y < 0.0 { -a } else { a }
}

/// x^(k/4) for x >= 0.
pub(super) fn quarter_power(x: f32, k: u32) -> f32 {
    let root = x.max(0.0).sqrt().sqrt();
    (0..k).fold(1.0, |power, _| power * root)
}

/// 0 at and below 0, 1 at and above 1, smooth between.
#[inline]
pub(super) fn smooth(t: f32) -> f32 {
    let t = t.clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Wave of period 1 between -1 and 1, made of parabolas: -1 at 0, 1 at 0.5.
#[inline]
pub(super) fn wave(t: f32) -> f32 {
    let d = (t - floor(t)) * 2.0 - 1.0;
    1.0 - 2.0 * d * d
}

#[inline]
pub(super) fn mix(a: Rgb, b: Rgb, t: f32) -> Rgb {
    [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t]
}

#[inline]
pub(super) fn scale(a: Rgb, k: f32) -> Rgb {
    [a[0] * k, a[1] * k, a[2] * k]
}

/// Share of a pixel of width `pixel` that lies inside an edge at signed distance `distance` (negative inside).
#[inline]
pub(super) fn coverage(distance: f32, pixel: f32) -> f32 {
    (0.5 - distance / pixel).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn against_the_system_functions() {
        for i in -4000..4000 {
            let turns = i as f32 * 0.0007;
            let want = f64::from(turns) * std::f64::consts::TAU;
            let (c, s) = cos_sin(turns);
            assert!(
                (f64::from(c) - want.cos()).abs() < 3e-6 && (f64::from(s) - want.sin()).abs() < 3e-6,
                "{turns}: {c} {s}"
            );
            let found = f64::from(angle(c * 3.0, s * 3.0)) * std::f64::consts::TAU;
            let apart = (found - want.sin().atan2(want.cos())).rem_euclid(std::f64::consts::TAU);
            assert!(apart.min(std::f64::consts::TAU - apart) < 1.5e-5, "{turns}: {found}");
        }
        for x in [-2.0f32, -1.5, -0.1, 0.0, 0.9, 1.0, 7.3] {
            assert_eq!(floor(x), x.floor());
        }
        assert_eq!(angle(0.0, 0.0), 0.0);
        assert!((quarter_power(0.3, 3) - 0.3f32.powf(0.75)).abs() < 1e-6);
        assert_eq!(quarter_power(0.3, 0), 1.0);
        assert_eq!((wave(0.0), wave(0.25), wave(0.5), wave(1.25)), (-1.0, 0.5, 1.0, 0.5));
    }
}
