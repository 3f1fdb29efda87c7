//! What a GPU would be asked for, and how long it should take: launches, registers, occupancy, bytes. Needs no GPU, measures nothing.
//!
//! A training step, or a network call of sampling, is carried out on a device that only writes down the launches ([`crate::device::dry`]),
//! watched like any other ([`super::probe`]). The extents are those of a real step, since they are chosen above the launcher; registers and
//! static shared memory are what ptxas reported of the kernels in this program.
//!
//! The prediction is a model (see [`Model`]), to be replaced by a measurement. The floor of a kernel is the larger of its multiply-adds at the
//! rate of `mma.sync` and its bytes at the rate of a copy: each operand read once, each result written once. Of several kernels of
//! one operation the first carries the operation's work; the others (merges and reductions of partial sums, whose operands are kilobytes or lie
//! in L2, and the residual part of a weight gradient) count as launches.

pub mod gpus;
mod text;

use crate::config::{Config, Family};
use crate::device::ReadBack;
use crate::device::dry::{Dry, Node};
use crate::device::gpu::{Arithmetic, Gpu};
use crate::error::{Error, Result};
use crate::kernels::{self, Ptxas};

use super::probe::{Call, Launched, Probe, Watch};
use super::sample;
use super::step::Training;
use gpus::{GpuSpec, Occupancy};

/// What the model assumes: shares of peak and of bandwidth that a kernel reaches, and what every launch costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Model {
    /// Share of the rate of `mma.sync` that a full GPU reaches.
    pub compute: f64,
    /// Share of the bandwidth of a copy.
    pub memory: f64,
    /// Seconds until a kernel works at its rate.
    pub ramp: f64,
    /// Seconds between two nodes of a graph.
    pub gap: f64,
}

/// Judgement, no measurement: `mma.sync` kernels before they are tuned, launched from a graph.
pub const MODEL: Model = Model { compute: 0.55, memory: 0.75, ramp: 1.0e-6, gap: 0.9e-6 };

/// A node of the graph.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel; "fill" and "copy" for what the driver does.
    pub kernel: &'static str,
    /// The operation that asked for it.
    pub call: Call,
    /// Blocks.
    pub blocks: u64,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block, static and dynamic.
    pub shared: u32,
    /// Registers of a thread, where the build had nvcc.
    pub registers: Option<u32>,
    /// Blocks of a multiprocessor, likewise.
    pub occupancy: Option<Occupancy>,
    /// Multiply-adds times two.
    pub flops: u64,
    /// Bytes.
    pub bytes: u64,
    /// Seconds at best.
    pub floor: f64,
    /// Seconds by the model, with ramp and gap.
    pub predicted: f64,
}

impl Launch {
    /// Times that the GPU is filled with blocks, the last time perhaps in part.
    pub fn waves(&self, gpu: &GpuSpec) -> Option<f64> {
        let at_once = u64::from(self.occupancy?.blocks) * u64::from(gpu.multiprocessors);
        (at_once > 0).then(|| self.blocks as f64 / at_once as f64)
    }
}

/// What is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A training step.
    Step,
    /// A network call of sampling, and the update behind it.
    Sample,
}

/// A step, or a call of sampling, as a list of launches.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The GPU.
    pub gpu: &'static GpuSpec,
    /// Its arithmetic.
    pub arithmetic: Arithmetic,
    /// In their order.
    pub launches: Vec<Launch>,
}

/// Plans a training step or a network call of sampling.
///
/// # Errors
/// The configuration is refused; a kernel does not fit into a block of this GPU.
pub fn plan(config: &Config, gpu: &'static GpuSpec, arithmetic: Arithmetic, what: What) -> Result<Plan> {
    let device = Gpu::new(Dry::new(gpu.shared_block as usize), arithmetic);
    let probe = Probe::new(&device)?;
    match what {
        What::Step => {
            let mut training = Training::new(&probe, config)?;
            // The first step may prepare what later ones find.
            training.begin(&probe)?.wait()?;
            device.launcher().take();
            probe.set(Watch::Launches);
            training.begin(&probe)?.wait()?;
        }
        What::Sample => {
            // The seed's loop ends one call before its number of steps.
            let steps = if config.family == Family::Seed { 2 } else { 1 };
            sample::with_pictures(&probe, config, config.batch_size, steps, |pictures| {
                pictures.draw(&probe)?;
                device.launcher().take();
                probe.set(Watch::Launches);
                pictures.draw(&probe)
            })?;
        }
    }
    probe.set(Watch::Off);
    let mut nodes = device.launcher().take().into_iter().peekable();
    let mut launches = Vec::new();
    let is_launch = |node: &Node| matches!(node, Node::Launch(..));
    for Launched { call, kernels } in probe.take_launches() {
        let mut group: Vec<Node> = Vec::new();
        while group.iter().filter(|node| is_launch(node)).count() < kernels.len() {
            group.push(nodes.next().ok_or_else(|| Error::Failed("plan: a launch is missing".into()))?);
        }
        while let Some(node) = nodes.next_if(|node| !is_launch(node)) {
            group.push(node);
        }
        launches.extend(of_operation(&call, &group, gpu, arithmetic));
    }
    if nodes.next().is_some() {
        return Err(Error::Failed("plan: a launch belongs to no operation".into()));
    }
    Ok(Plan { gpu, arithmetic, launches })
}

/// The launches of one operation.
fn of_operation(call: &Call, nodes: &[Node], gpu: &GpuSpec, arithmetic: Arithmetic) -> Vec<Launch> {
    let blocks = |node: &Node| match node {
        Node::Launch(_, config) => config.grid.iter().map(|&n| u64::from(n)).product(),
        Node::Fill(_) | Node::Copy(_) => 0,
    };
    let main = nodes.iter().position(|node| blocks(node) > 0).or((!nodes.is_empty()).then_some(0));
    let of_node = |(i, node): (usize, &Node)| {
        let (flops, bytes) = if Some(i) == main { (call.flops, call.bytes) } else { (0, 0) };
        let (kernel, threads, dynamic) = match node {
            Node::Launch(entry, config) => (entry.name, config.block.iter().product(), config.shared),
            Node::Fill(_) => ("fill", 0, 0),
            Node::Copy(_) => ("copy", 0, 0),
        };
        let ptxas = ptxas(kernel, gpu.arch);
        let shared = dynamic + ptxas.map_or(0, |p| p.shared);
        let occupancy = ptxas.map(|p| gpu.occupancy(threads, p.registers, shared));
        let mut launch = Launch {
            kernel,
            call: call.clone(),
            blocks: blocks(node),
            threads,
            shared,
            registers: ptxas.map(|p| p.registers),
            occupancy,
            flops,
            bytes,
            floor: (flops as f64 / gpu.flops(arithmetic)).max(bytes as f64 / gpu.bandwidth),
            predicted: 0.0,
        };
        launch.predicted = predict(&launch, gpu, arithmetic, &MODEL);
        launch
    };
    nodes.iter().enumerate().map(of_node).collect()
}

/// What ptxas said of a kernel for an architecture; of the nearest where it was not compiled for that one.
fn ptxas(kernel: &str, arch: &str) -> Option<&'static Ptxas> {
    let mut of_kernel = kernels::PTXAS.iter().filter(|p| p.kernel == kernel);
    of_kernel.clone().find(|p| p.arch == arch).or_else(|| of_kernel.next())
}

/// Seconds by the model. The blocks of a multiprocessor share its tensor cores, so the one that has the most blocks ends last. One that has a
/// block can ask for twice its share of the bandwidth.
fn predict(launch: &Launch, gpu: &GpuSpec, arithmetic: Arithmetic, model: &Model) -> f64 {
    let multiprocessors = f64::from(gpu.multiprocessors);
    let blocks = launch.blocks as f64;
    let (busy, asking) = match launch.blocks {
        0 => (1.0, 1.0), // the driver's own
        _ => {
            (blocks / ((blocks / multiprocessors).ceil() * multiprocessors), (2.0 * blocks / multiprocessors).min(1.0))
        }
    };
    let compute = launch.flops as f64 / (gpu.flops(arithmetic) * model.compute * busy);
    let memory = launch.bytes as f64 / (gpu.bandwidth * model.memory * asking);
    compute.max(memory) + model.ramp + model.gap
}
