//! The structure of Inception-v3, with torchvision's names: blocks, which concatenate branches.

use super::{Pooling, Variant};

/// A convolution, followed by batch norm and max(0, .).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ConvLayer {
    /// Its tensors begin with it.
    pub name: String,
    /// Channels in and out.
    pub c: u32,
    pub k: u32,
    /// Rows and columns of the window, and of the zeros on every side.
    pub kernel: [u32; 2],
    pub pad: [u32; 2],
    pub stride: u32,
}

/// A pooling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pool {
    pub pooling: Pooling,
    pub kernel: u32,
    pub stride: u32,
    pub pad: u32,
}

/// A pooling where there is one, then convolutions one behind the other, then convolutions side by side, whose outputs are concatenated.
/// Without convolutions the pooling's output is the branch's.
#[derive(Clone, Debug, Default)]
pub(super) struct Branch {
    pub pool: Option<Pool>,
    pub chain: Vec<ConvLayer>,
    pub ends: Vec<ConvLayer>,
}

/// Branches of one input, whose outputs are concatenated.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub name: String,
    pub branches: Vec<Branch>,
}

fn windows(extent: u32, kernel: u32, stride: u32, pad: u32) -> u32 {
    (extent + 2 * pad - kernel) / stride + 1
}

impl ConvLayer {
    /// Rows and columns of the output.
    pub fn extents(&self, [h, w]: [u32; 2]) -> [u32; 2] {
        let of = |extent, i: usize| windows(extent, self.kernel[i], self.stride, self.pad[i]);
        [of(h, 0), of(w, 1)]
    }
}

impl Pool {
    /// Rows and columns of the output.
    pub fn extents(&self, extents: [u32; 2]) -> [u32; 2] {
        extents.map(|extent| windows(extent, self.kernel, self.stride, self.pad))
    }
}

impl Branch {
    /// Channels of its output, for `c` of the input.
    pub fn channels(&self, c: u32) -> u32 {
        if self.ends.is_empty() { c } else { self.ends.iter().map(|layer| layer.k).sum() }
    }

    fn extents(&self, extents: [u32; 2]) -> [u32; 2] {
        let pooled = self.pool.map_or(extents, |pool| pool.extents(extents));
        self.chain.iter().chain(self.ends.first()).fold(pooled, |extents, layer| layer.extents(extents))
    }
}

impl Block {
    /// Rows and columns of its output.
    pub fn extents(&self, extents: [u32; 2]) -> [u32; 2] {
        self.branches.last().map_or(extents, |branch| branch.extents(extents))
    }

    /// Its convolutions, in the order in which they run.
    pub fn convolutions(&self) -> impl Iterator<Item = &ConvLayer> {
        self.branches.iter().flat_map(|branch| branch.chain.iter().chain(&branch.ends))
    }
}

/// A convolution to be: name within its block, output channels, window; zeros that keep the extents, unless `stride` is 2.
type Spec = (&'static str, u32, [u32; 2], u32);

/// With stride 1, and zeros that keep the extents.
const fn conv(name: &'static str, k: u32, kernel: [u32; 2]) -> Spec {
    (name, k, kernel, 1)
}

/// 3x3 with stride 2, without zeros.
const fn halving(name: &'static str, k: u32) -> Spec {
    (name, k, [3, 3], 2)
}

fn layer(block: &str, c: u32, (name, k, kernel, stride): Spec) -> ConvLayer {
    let pad = if stride == 1 { kernel.map(|extent| extent / 2) } else { [0, 0] };
    ConvLayer { name: format!("{block}.{name}"), c, k, kernel, pad, stride }
}

/// A branch of `c` input channels: a chain of convolutions, of which the last `side_by_side` have the same input.
fn branch(block: &str, c: u32, pool: Option<Pool>, specs: &[Spec], side_by_side: usize) -> Branch {
    let (chain, ends) = specs.split_at(specs.len() - side_by_side);
    let mut made = Branch { pool, ..Branch::default() };
    let mut channels = c;
    for &spec in chain {
        made.chain.push(layer(block, channels, spec));
        channels = spec.1;
    }
    made.ends = ends.iter().map(|&spec| layer(block, channels, spec)).collect();
    made
}

/// The largest of 3x3, stride 2.
const HALVING_MAX: Pool = Pool { pooling: Pooling::Max, kernel: 3, stride: 2, pad: 0 };

/// 3x3 around every pixel.
fn around(pooling: Pooling) -> Pool {
    Pool { pooling, kernel: 3, stride: 1, pad: 1 }
}

/// Convolutions and poolings before the first block with branches.
fn stem() -> Vec<Block> {
    let single = |name: &str, c, k, kernel: u32, stride, pad: u32| {
        let layer = ConvLayer { name: name.into(), c, k, kernel: [kernel; 2], pad: [pad; 2], stride };
        Block { name: name.into(), branches: vec![Branch { ends: vec![layer], ..Branch::default() }] }
    };
    let pool = |name: &str| Block {
        name: name.into(),
        branches: vec![Branch { pool: Some(HALVING_MAX), ..Branch::default() }],
    };
    vec![
        single("Conv2d_1a_3x3", 3, 32, 3, 2, 0),
        single("Conv2d_2a_3x3", 32, 32, 3, 1, 0),
        single("Conv2d_2b_3x3", 32, 64, 3, 1, 1),
        pool("maxpool1"),
        single("Conv2d_3b_1x1", 64, 80, 1, 1, 0),
        single("Conv2d_4a_3x3", 80, 192, 3, 1, 0),
        pool("maxpool2"),
    ]
}

/// 35x35.
fn block_a(name: &str, c: u32, pooled: u32, mean: Pooling) -> Block {
    let dbl =
        [conv("branch3x3dbl_1", 64, [1, 1]), conv("branch3x3dbl_2", 96, [3, 3]), conv("branch3x3dbl_3", 96, [3, 3])];
    let branches = vec![
        branch(name, c, None, &[conv("branch1x1", 64, [1, 1])], 1),
        branch(name, c, None, &[conv("branch5x5_1", 48, [1, 1]), conv("branch5x5_2", 64, [5, 5])], 1),
        branch(name, c, None, &dbl, 1),
        branch(name, c, Some(around(mean)), &[conv("branch_pool", pooled, [1, 1])], 1),
    ];
    Block { name: name.into(), branches }
}

/// 35x35 to 17x17.
fn block_b(name: &str, c: u32) -> Block {
    let dbl = [conv("branch3x3dbl_1", 64, [1, 1]), conv("branch3x3dbl_2", 96, [3, 3]), halving("branch3x3dbl_3", 96)];
    let branches = vec![
        branch(name, c, None, &[halving("branch3x3", 384)], 1),
        branch(name, c, None, &dbl, 1),
        branch(name, c, Some(HALVING_MAX), &[], 0),
    ];
    Block { name: name.into(), branches }
}

/// 17x17: windows of 7 by 7 as rows and columns.
fn block_c(name: &str, c: u32, k: u32, mean: Pooling) -> Block {
    let (row, column) = ([1, 7], [7, 1]);
    let once = [conv("branch7x7_1", k, [1, 1]), conv("branch7x7_2", k, row), conv("branch7x7_3", 192, column)];
    let twice = [
        conv("branch7x7dbl_1", k, [1, 1]),
        conv("branch7x7dbl_2", k, column),
        conv("branch7x7dbl_3", k, row),
        conv("branch7x7dbl_4", k, column),
        conv("branch7x7dbl_5", 192, row),
    ];
    let branches = vec![
        branch(name, c, None, &[conv("branch1x1", 192, [1, 1])], 1),
        branch(name, c, None, &once, 1),
        branch(name, c, None, &twice, 1),
        branch(name, c, Some(around(mean)), &[conv("branch_pool", 192, [1, 1])], 1),
    ];
    Block { name: name.into(), branches }
}

/// 17x17 to 8x8.
fn block_d(name: &str, c: u32) -> Block {
    let long = [
        conv("branch7x7x3_1", 192, [1, 1]),
        conv("branch7x7x3_2", 192, [1, 7]),
        conv("branch7x7x3_3", 192, [7, 1]),
        halving("branch7x7x3_4", 192),
    ];
    let branches = vec![
        branch(name, c, None, &[conv("branch3x3_1", 192, [1, 1]), halving("branch3x3_2", 320)], 1),
        branch(name, c, None, &long, 1),
        branch(name, c, Some(HALVING_MAX), &[], 0),
    ];
    Block { name: name.into(), branches }
}

/// 8x8.
fn block_e(name: &str, c: u32, pooling: Pooling) -> Block {
    let (row, column) = ([1, 3], [3, 1]);
    let once = [conv("branch3x3_1", 384, [1, 1]), conv("branch3x3_2a", 384, row), conv("branch3x3_2b", 384, column)];
    let twice = [
        conv("branch3x3dbl_1", 448, [1, 1]),
        conv("branch3x3dbl_2", 384, [3, 3]),
        conv("branch3x3dbl_3a", 384, row),
        conv("branch3x3dbl_3b", 384, column),
    ];
    let branches = vec![
        branch(name, c, None, &[conv("branch1x1", 320, [1, 1])], 1),
        branch(name, c, None, &once, 2),
        branch(name, c, None, &twice, 2),
        branch(name, c, Some(around(pooling)), &[conv("branch_pool", 192, [1, 1])], 1),
    ];
    Block { name: name.into(), branches }
}

/// The whole network, down to the mean of each channel.
pub(super) fn blocks(variant: Variant) -> Vec<Block> {
    let (mean, last) = match variant {
        Variant::Torchvision => (Pooling::MeanAll, Pooling::MeanAll),
        Variant::Fid => (Pooling::MeanInside, Pooling::Max),
    };
    let mut blocks = stem();
    blocks.extend([
        block_a("Mixed_5b", 192, 32, mean),
        block_a("Mixed_5c", 256, 64, mean),
        block_a("Mixed_5d", 288, 64, mean),
        block_b("Mixed_6a", 288),
        block_c("Mixed_6b", 768, 128, mean),
        block_c("Mixed_6c", 768, 160, mean),
        block_c("Mixed_6d", 768, 160, mean),
        block_c("Mixed_6e", 768, 192, mean),
        block_d("Mixed_7a", 768),
        block_e("Mixed_7b", 1280, mean),
        block_e("Mixed_7c", 2048, last),
    ]);
    let all = Pool { pooling: Pooling::MeanAll, kernel: 8, stride: 1, pad: 0 };
    blocks.push(Block { name: "avgpool".into(), branches: vec![Branch { pool: Some(all), ..Branch::default() }] });
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::inception::{FEATURES, FLOPS, SIZE};

    #[test]
    fn channels_and_extents_follow_from_block_to_block() {
        let (mut extents, mut c, mut flops, mut parameters) = ([SIZE as u32; 2], 3, 0.0, 0);
        for block in blocks(Variant::Fid) {
            for branch in &block.branches {
                assert_eq!(branch.extents(extents), block.extents(extents), "{}", block.name);
                let mut at = branch.pool.map_or(extents, |pool| pool.extents(extents));
                let mut channels = c;
                for layer in &branch.chain {
                    assert_eq!(layer.c, channels, "{}", layer.name);
                    (at, channels) = (layer.extents(at), layer.k);
                    flops +=
                        f64::from(at[0] * at[1]) * f64::from(layer.c * layer.k * layer.kernel[0] * layer.kernel[1]);
                }
                for layer in &branch.ends {
                    assert_eq!((layer.c, layer.extents(at)), (channels, block.extents(extents)), "{}", layer.name);
                    let pixels = layer.extents(at);
                    flops += f64::from(pixels[0] * pixels[1])
                        * f64::from(layer.c * layer.k * layer.kernel[0] * layer.kernel[1]);
                }
            }
            parameters += block.convolutions().map(|l| l.c * l.k * l.kernel[0] * l.kernel[1]).sum::<u32>();
            (extents, c) = (block.extents(extents), block.branches.iter().map(|b| b.channels(c)).sum());
        }
        assert_eq!((extents, c as usize), ([1, 1], FEATURES));
        assert!((2.0 * flops / FLOPS - 1.0).abs() < 0.01, "{}", 2.0 * flops);
        // Weights of the 94 convolutions of torchvision's network without its auxiliary head.
        assert_eq!(parameters, 21_751_136);
    }
}
