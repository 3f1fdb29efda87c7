//! Counter-based randomness: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 4).
//!
//! A random number here is a pure function of (seed, purpose, step, image, element): the same on every device, in every order,
//! with any number of threads, and a resumed run needs no generator state. The key holds the seed; the counter holds
//! `[element block, image, step, purpose]`.
//!
//! Normal numbers come from Box-Muller on the four words of one block. Logarithm, sine and cosine are polynomials made of IEEE
//! single additions and multiplications only (no fused multiply-add, no library call), so that every device gets the same bits.

/// What a random number is for: keeps streams of different use apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights; `image` is the index of the parameter.
    Init = 1,
    /// Diffusion times of training images.
    Times = 2,
    /// The noise mixed into training images.
    Noise = 3,
    /// The initial noise of samples; `image` is the global index of the sample.
    Sample = 4,
    /// Order of the images within an epoch; `step` is the epoch.
    Order = 5,
    /// The split into training and validation.
    Split = 6,
    /// Horizontal flips; `step` is the epoch.
    Flip = 7,
    /// Procedural pictures; `image` is the index of the picture.
    Picture = 8,
    /// Diffusion times of validation images.
    ValidTimes = 9,
    /// Noise of validation images.
    ValidNoise = 10,
    /// Noise that a sampler adds on its way; `step` is the number of the network call, `image` the global index of the sample.
    SampleStep = 11,
    /// Which training images lose their class label.
    LabelDrop = 20,
    /// The part of training noise that is the same over a channel.
    Offset = 21,
    /// Subsets of pictures; `step` is the number of the subset, `image` that of the set.
    Subset = 22,
    /// Diffusion times of validation images within a bin of them; `step` is the bin.
    LevelTimes = 23,
    /// Noise of validation images there; `step` is the bin.
    LevelNoise = 24,
    /// Dropout; every layer adds its number (see [`Stream::of_layer`]).
    Dropout = 1000,
}

const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// One Philox4x32-10 block: 10 rounds over a 128-bit counter with a 64-bit key.
#[inline(always)]
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(M0) * u64::from(counter[0]);
        let p1 = u64::from(M1) * u64::from(counter[2]);
        counter =
            [(p1 >> 32) as u32 ^ counter[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ counter[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(W0), key[1].wrapping_add(W1)];
    }
    counter
}

/// A stream of random numbers: everything of the counter but the element.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    image: u32,
    step: u32,
    purpose: u32,
}

impl Stream {
    /// The stream of a layer of a network: (seed, purpose + layer, step, image).
    pub fn of_layer(seed: u64, purpose: Purpose, layer: u32, step: u64, image: u64) -> Self {
        let stream = Stream::new(seed, purpose, step, image);
        Stream { purpose: stream.purpose.wrapping_add(layer), ..stream }
    }

    /// The stream of (seed, purpose, step, image). `step` and `image` are taken modulo 2^32.
    pub fn new(seed: u64, purpose: Purpose, step: u64, image: u64) -> Self {
        Stream {
            key: [seed as u32, (seed >> 32) as u32],
            image: image as u32,
            step: step as u32,
            purpose: purpose as u32,
        }
    }

    /// Four random words: elements `4 * block ..= 4 * block + 3`.
    #[inline(always)]
    pub fn block(&self, block: u32) -> [u32; 4] {
        philox4x32([block, self.image, self.step, self.purpose], self.key)
    }

    /// Four numbers uniform in [0, 1) with 24 bits.
    #[inline(always)]
    pub fn uniform4(&self, block: u32) -> [f32; 4] {
        self.block(block).map(|w| (w >> 8) as f32 * (1.0 / 16_777_216.0))
    }

    /// Four standard normal numbers.
    #[inline(always)]
    pub fn normal4(&self, block: u32) -> [f32; 4] {
        let [a, b, c, d] = self.block(block);
        let ([z0, z1], [z2, z3]) = (box_muller(a, b), box_muller(c, d));
        [z0, z1, z2, z3]
    }

    /// Fills `out` with standard normal numbers, elements `0..out.len()` of the stream.
    pub fn fill_normal(&self, out: &mut [f32]) {
        for (i, chunk) in out.chunks_mut(4).enumerate() {
            chunk.copy_from_slice(&self.normal4(i as u32)[..chunk.len()]);
        }
    }

    /// Fills `out` with uniform numbers in [0, 1), elements `0..out.len()` of the stream.
    pub fn fill_uniform(&self, out: &mut [f32]) {
        for (i, chunk) in out.chunks_mut(4).enumerate() {
            chunk.copy_from_slice(&self.uniform4(i as u32)[..chunk.len()]);
        }
    }

    /// A sequential reader of the stream, for code that draws as it goes (shuffles, pictures).
    pub fn reader(&self) -> Reader {
        Reader { stream: *self, block: 0, words: [0; 4], left: 0 }
    }
}

/// Draws from a [`Stream`] one after the other.
#[derive(Clone, Debug)]
pub struct Reader {
    stream: Stream,
    block: u32,
    words: [u32; 4],
    left: usize,
}

impl Reader {
    /// The next random word.
    pub fn word(&mut self) -> u32 {
        if self.left == 0 {
            self.words = self.stream.block(self.block);
            self.block = self.block.wrapping_add(1);
            self.left = 4;
        }
        self.left -= 1;
        self.words[3 - self.left]
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.word() >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.uniform()
    }

    /// Uniform integer in 0..n (n > 0), by rejection, without bias.
    pub fn below(&mut self, n: u32) -> u32 {
        let limit = u32::MAX - (u32::MAX % n + 1) % n;
        loop {
            let w = self.word();
            if w <= limit {
                return w % n;
            }
        }
    }

    /// Fisher-Yates shuffle.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u32 + 1) as usize;
            items.swap(i, j);
        }
    }
}

/// Two words to two independent standard normal numbers: r = sqrt(-2 ln u), (r cos 2 pi v, r sin 2 pi v).
#[inline(always)]
fn box_muller(a: u32, b: u32) -> [f32; 2] {
    // u in (0, 1]: the 24-bit grid shifted by one step, so that ln never sees 0. Largest radius: sqrt(2 * 24 ln 2) = 5.77.
    let u = ((a >> 8) + 1) as f32 * (1.0 / 16_777_216.0);
    let r = (-2.0 * ln(u)).sqrt();
    let (s, c) = sin_cos_turns(b);
    [r * c, r * s]
}

/// Natural logarithm of a positive normal number; relative error below 2e-7 (tested against float64).
#[inline(always)]
fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    // x = m * 2^e with m in [sqrt(1/2), sqrt(2)).
    let shifted = bits.wrapping_sub(0x3F35_04F3);
    let e = (shifted as i32) >> 23;
    let m = f32::from_bits((shifted & 0x007F_FFFF).wrapping_add(0x3F35_04F3));
    // ln m = 2 atanh(s), s = (m-1)/(m+1), |s| <= 0.1716.
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let p = z * (0.666_666_7 + z * (0.4 + z * (0.285_714_3 + z * (0.222_222_22 + z * 0.181_818_18))));
    e as f32 * std::f32::consts::LN_2 + (2.0 * s + s * p)
}

/// (sin, cos) of `word / 2^32` turns. The octant comes from the top bits, so there is no range reduction error.
#[inline(always)]
fn sin_cos_turns(word: u32) -> (f32, f32) {
    // Quadrant, and the signed offset from its centre in [-1/8, 1/8) turns.
    let quadrant = word >> 30;
    let offset = ((word << 2) >> 8) as f32 * (1.0 / 16_777_216.0) - 0.5;
    let t = offset * std::f32::consts::FRAC_PI_2;
    let z = t * t;
    let s = t * (1.0 + z * (-0.166_666_67 + z * (0.008_333_333 + z * (-1.984_127e-4 + z * 2.755_731_9e-6))));
    let c = 1.0 + z * (-0.5 + z * (0.041_666_668 + z * (-0.001_388_888_9 + z * (2.480_158_7e-5 + z * -2.755_732e-7))));
    // Rotate by the quadrant's centre: 45 degrees + 90 * quadrant.
    const H: f32 = std::f32::consts::FRAC_1_SQRT_2;
    let (s, c) = ((s + c) * H, (c - s) * H);
    match quadrant {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 10 rounds).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn elementary_functions_against_f64() {
        let mut r = Stream::new(7, Purpose::Init, 0, 0).reader();
        for i in 0..100_000u32 {
            let u = ((r.word() >> 8) + 1) as f32 / 16_777_216.0;
            let want = f64::from(u).ln();
            assert!((f64::from(ln(u)) - want).abs() <= 3e-7 * want.abs().max(1e-3), "ln({u})");
            let w = if i < 8 { i << 29 } else { r.word() };
            let angle = f64::from(w) / 4_294_967_296.0 * std::f64::consts::TAU;
            let (s, c) = sin_cos_turns(w);
            assert!((f64::from(s) - angle.sin()).abs() < 3e-7, "sin {w}: {s} against {}", angle.sin());
            assert!((f64::from(c) - angle.cos()).abs() < 3e-7, "cos {w}");
        }
    }

    #[test]
    fn normals_have_the_moments_of_a_normal() {
        let mut z = vec![0.0; 1 << 20];
        Stream::new(1, Purpose::Noise, 2, 3).fill_normal(&mut z);
        let n = z.len() as f64;
        let moment = |k: i32| z.iter().map(|&v| f64::from(v).powi(k)).sum::<f64>() / n;
        assert!(moment(1).abs() < 4e-3);
        assert!((moment(2) - 1.0).abs() < 6e-3);
        assert!(moment(3).abs() < 1.6e-2);
        assert!((moment(4) - 3.0).abs() < 4e-2);
        let lag: f64 = z.windows(2).map(|w| f64::from(w[0]) * f64::from(w[1])).sum::<f64>() / n;
        assert!(lag.abs() < 4e-3);
    }

    #[test]
    fn shuffle_is_a_permutation_and_below_stays_below() {
        let mut v: Vec<u32> = (0..1000).collect();
        let mut r = Stream::new(3, Purpose::Order, 0, 0).reader();
        r.shuffle(&mut v);
        assert_ne!(v, (0..1000).collect::<Vec<_>>());
        v.sort_unstable();
        assert_eq!(v, (0..1000).collect::<Vec<_>>());
        assert!((0..1000).all(|_| r.below(7) < 7));
        assert_eq!(r.below(1), 0);
    }
}
