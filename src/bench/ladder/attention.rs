//! Attention, forward: `kernels/ladder/attention_*.cu`, then the engine's `kernels/attention.cu`.

use bytemuck::{Pod, Zeroable};

use super::predict::Cost;
use super::{Extents, Rung, Steps, countable, downloaded, error_of_ends, expect, normals, uploaded, wide};
use crate::device::Memory;
use crate::device::gpu::{DevicePtr, Gpu, GpuBuffer, blocks};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::kernels;
use crate::ops::attention::{Attention, AttentionDims, reference};

/// The rungs.
const RUNGS: [Rung; 5] = [
    Rung { name: "attention_0", idea: "a kernel a line", file: "ladder/attention_0_naive.cu" },
    Rung { name: "attention_1", idea: "scores stay in registers", file: "ladder/attention_1_fused.cu" },
    Rung { name: "attention_2", idea: "k, v in shared memory", file: "ladder/attention_2_shared.cu" },
    Rung { name: "attention_3", idea: "tensor cores", file: "ladder/attention_3_tensor.cu" },
    Rung { name: "attention_4", idea: "the engine's: keys by 64", file: "attention.cu" },
];

/// `LadderAttentionArgs` of `kernels/ladder/attention_args.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Args {
    qkv: DevicePtr,
    y: DevicePtr,
    s: DevicePtr,
    n: u32,
    t: u32,
    heads: u32,
    d: u32,
    scale: f32,
    unused: u32,
}

/// Tokens that rungs 1 to 3 keep a row of in registers, and channels of a head that they take.
const MOST: (u32, u32) = (256, 64);

/// Extents of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionExtents {
    /// Images.
    pub n: u32,
    /// Tokens of an image.
    pub tokens: u32,
    /// Heads.
    pub heads: u32,
    /// Channels of a head.
    pub d: u32,
}

impl AttentionExtents {
    fn dims(&self) -> AttentionDims {
        AttentionDims { n: self.n, tokens: self.tokens, heads: self.heads, head_dim: self.d }
    }
}

impl Extents for AttentionExtents {
    const OPERATION: &'static str = "attention";
    const RUNGS: &'static [Rung] = &RUNGS;

    fn named(small: bool, batch: Option<u32>) -> Self {
        let (n, tokens, heads, d) = if small { (1, 64, 2, 32) } else { (64, 256, 4, 64) };
        AttentionExtents { n: batch.unwrap_or(n), tokens, heads, d }
    }

    fn shape(&self) -> String {
        format!("{}x{} heads {}x{}", self.n, self.tokens, self.heads, self.d)
    }

    fn work(&self, _rung: usize) -> (u64, u64) {
        let d = self.dims();
        (d.flops(), 2 * 4 * d.len() as u64)
    }

    fn cost(&self, rung: usize) -> Cost {
        let (flops, bytes) = self.work(rung);
        let (memory, flops) = (bytes as f64, flops as f64);
        let [n, t, heads, d] = [self.n, self.tokens, self.heads, self.d].map(f64::from);
        let rows = n * heads * t;
        let (groups, units) = ((t / 32.0).ceil(), d / 8.0); // of keys, of channels
        // Of a row: a load of keys in `lines` accesses, two of the query, eight unpacked and multiplied; then value, weight and two each.
        let accesses = |lines: f64| rows * (groups * units * (lines + 2.0) + 2.0 * t);
        let instructions = rows * (groups * units * 19.0 + 6.0 * t);
        let (blocks, brought) = (n * heads * (t / 64.0).ceil(), 2.0 * (64.0 + 2.0 * t) * d);
        let l2 = blocks * brought + 2.0 * rows * d;
        match rung {
            0 => {
                let scores = rows * t / 32.0 * d * 33.0;
                let (softmax, values) = (rows * t * 4.0, rows * d / 32.0 * t * 2.0);
                let memory = memory + 5.0 * 4.0 * rows * t;
                Cost { memory, accesses: scores + softmax + values, ffma: flops, ..Cost::default() }
            }
            1 => Cost { memory, accesses: accesses(32.0), instructions, ffma: flops, ..Cost::default() },
            2 => Cost { memory, l2, accesses: accesses(4.0), instructions, ffma: flops, ..Cost::default() },
            _ => {
                // Of 16 rows: matrices of q once a step, or once for every 64 keys; of k and of v.
                let (steps, again) = (d / 16.0, if rung == 3 { 1.0 } else { (t / 64.0).ceil() });
                let of_warp = steps * (4.0 * again + t / 4.0) + t / 16.0 * steps * 4.0;
                let accesses = rows / 16.0 * of_warp + blocks * brought / 128.0;
                Cost { memory, l2, accesses, mma: flops, ..Cost::default() }
            }
        }
    }
}

/// Attention with its operands.
pub struct AttentionSteps<L: Launcher> {
    d: AttentionExtents,
    values: Vec<f32>,
    qkv: GpuBuffer<L>,
    y: GpuBuffer<L>,
    lse: GpuBuffer<L>,
    /// Scores of rung 0, once needed.
    scores: Option<GpuBuffer<L>>,
}

impl<L: Launcher> AttentionSteps<L> {
    fn launch(&mut self, gpu: &Gpu<L>, rung: usize) -> Result<()> {
        let AttentionExtents { n, tokens: t, heads, d } = self.d;
        let of = &RUNGS[rung];
        let dims = self.d.dims();
        let small = || {
            let fits = t <= MOST.0 && d <= MOST.1 && d.is_multiple_of(8);
            expect(of, fits, "at most 256 tokens and heads of at most 64 channels, a multiple of 8", &self.d)
        };
        if rung == 0 && self.scores.is_none() {
            expect(of, countable(&[n, heads, t, t]), "fewer than 2^31 scores", &self.d)?;
            self.scores = Some(gpu.alloc(dims.lse_len() * t as usize)?);
        }
        let all = Gpu::<L>::all;
        let args = Args {
            qkv: all(&self.qkv).ptr(),
            y: all(&self.y).ptr(),
            s: self.scores.as_ref().map_or(DevicePtr::NULL, |scores| all(scores).ptr()),
            n,
            t,
            heads,
            d,
            scale: dims.scale() as f32,
            unused: 0,
        };
        let rows = dims.lse_len();
        let tiles = [n * heads * t.div_ceil(kernels::LADDER_ATTENTION_QUERIES), 1, 1];
        match rung {
            0 => {
                let over = |elements: usize| [blocks(elements, 256), 1, 1];
                let threads = [256, 1, 1];
                gpu.launch(&kernels::LADDER_ATTENTION_0_SCORES, over(rows * t as usize), threads, 0, &args)?;
                gpu.launch(&kernels::LADDER_ATTENTION_0_SOFTMAX, over(rows), threads, 0, &args)?;
                gpu.launch(&kernels::LADDER_ATTENTION_0_VALUES, over(dims.len()), threads, 0, &args)
            }
            1 => {
                small()?;
                gpu.launch(&kernels::LADDER_ATTENTION_1, [blocks(rows, 4), 1, 1], [128, 1, 1], 0, &args)
            }
            2 => {
                small()?;
                let shared = 2 * t * (d + kernels::LADDER_ATTENTION_PAD) * 2;
                gpu.launch(&kernels::LADDER_ATTENTION_2, tiles, [256, 1, 1], shared, &args)
            }
            3 => {
                small()?;
                let rows = kernels::LADDER_ATTENTION_QUERIES + 2 * t.next_multiple_of(16);
                let shared = rows * kernels::LADDER_ATTENTION_PITCH * 2;
                gpu.launch(&kernels::LADDER_ATTENTION_3, tiles, [128, 1, 1], shared, &args)
            }
            _ => {
                let (y, lse) = (Gpu::<L>::all_mut(&mut self.y), Gpu::<L>::all_mut(&mut self.lse));
                gpu.attention(&dims, all(&self.qkv), y, lse)
            }
        }
    }

    /// y of an image in float64.
    fn truth(&self, image: usize) -> Vec<f64> {
        let d = AttentionDims { n: 1, ..self.d.dims() };
        let len = 3 * d.len();
        reference::forward(&d, &wide(&self.values[image * len..][..len])).0
    }
}

impl<L: Launcher> Steps<L> for AttentionSteps<L> {
    type Extents = AttentionExtents;

    fn new(gpu: &Gpu<L>, d: AttentionExtents) -> Result<Self> {
        expect(&RUNGS[0], countable(&[d.n, d.tokens, d.heads, d.d, 3]), "fewer than 2^31 elements", &d)?;
        let dims = d.dims();
        let values = normals(0, 3 * dims.len(), true);
        Ok(AttentionSteps {
            d,
            qkv: uploaded(gpu, &values, true)?,
            y: gpu.alloc_activation(dims.len())?,
            lse: gpu.alloc(dims.lse_len())?,
            scores: None,
            values,
        })
    }

    fn run(&mut self, gpu: &Gpu<L>, rung: usize) -> Result<()> {
        self.launch(gpu, rung)
    }

    fn error(&mut self, gpu: &Gpu<L>, rung: usize) -> Result<f64> {
        gpu.fill(Gpu::<L>::all_mut(&mut self.y), f32::NAN)?;
        self.launch(gpu, rung)?;
        error_of_ends(gpu, &self.y, self.d.n as usize, |image| self.truth(image))
    }

    fn result(&self, gpu: &Gpu<L>) -> Result<Vec<f32>> {
        downloaded(gpu, Gpu::<L>::all(&self.y))
    }
}
