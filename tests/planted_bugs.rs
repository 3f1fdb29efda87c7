//! Copies of the convolution kernel with one fault each (`build/planted.rs`): the simulator's checker reports every one, with its kind
//! and place, and has nothing to say about the kernel itself.

mod ops_support;

use std::io::Write;

use ddim_engine::device::gpu::{Arithmetic, Gpu};
use ddim_engine::device::sim::Sim;
use ddim_engine::kernels;
use ddim_engine::ops::conv::ConvDims;
use ops_support::Fill;
use ops_support::conv_case::ConvSpec;

/// Runs the convolution by this kernel in place of its own. `None` where this build has no checker.
fn run(kernel: &str) -> Option<Result<(), String>> {
    let sim = match Sim::checked() {
        Ok(sim) => sim,
        Err(why) => {
            // Past the capture of the test harness: a skip must be seen.
            std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes()).ok();
            return None;
        }
    };
    sim.stand_in(&kernels::CONV_FWD_M64N32_F32, kernel);
    let gpu = Gpu::new(sim, Arithmetic::Fp32);
    gpu.separate_buffers();
    // Three pictures smaller than a tile of four, three chunks of channels: every guard and both buffers are needed.
    let dims = ConvDims { n: 3, h: 3, w: 4, c0: 40, c1: 0, r0: 0, r1: 0, k: 24, side: 3 };
    let spec = ConvSpec { affine: true, silu: true, bias: true, lead: 16, ..ConvSpec::plain(dims) };
    let result = spec.run(&gpu, &spec.operands(Fill::new(1)));
    assert!(gpu.launcher().used().contains("conv_fwd_m64n32_f32"), "the case runs another kernel");
    Some(result.map(|_| ()).map_err(|error| error.to_string()))
}

const CONV: (&str, &str) = ("conv.cu", include_str!("../kernels/conv.cu"));
const TILE: (&str, &str) = ("conv_tile.cuh", include_str!("../kernels/conv_tile.cuh"));
const EPILOGUE: (&str, &str) = ("conv_epilogue.cuh", include_str!("../kernels/conv_epilogue.cuh"));

/// The copy of an operand to shared memory.
const COPY: &str = "cp_async16(smem_addr(dst + p * CONV_UNIT_BYTES)";

/// `fault` is reported as `kind`, and the report names the line of `file` that holds `text`.
fn is_reported(fault: &str, kind: &str, (file, source): (&str, &str), text: &str) {
    let kernel = format!("planted_{fault}_conv_fwd_m64n32_f32");
    let Some(result) = run(&kernel) else { return };
    let message = result.expect_err(fault);
    println!("{message}");
    let line = 1 + source.lines().position(|line| line.contains(text)).expect(text);
    let place = format!("{file}:{line}");
    let named = message.split(&place).skip(1).any(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
    assert!(named, "{fault}: {place} is not named: {message}");
    assert!(message.contains(kind) && message.contains(&kernel), "{fault}: {message}");
}

#[test]
fn the_kernel_itself_is_clean() {
    if let Some(result) = run("conv_fwd_m64n32_f32") {
        result.unwrap();
    }
}

#[test]
fn a_missing_barrier_is_reported() {
    is_reported("no_barrier", " read", CONV, "ldmatrix_x4(x[i], pixels[i]");
    is_reported("no_barrier_before_results", "RACE", CONV, "*reinterpret_cast<float2*>(r) =");
}

#[test]
fn a_missing_wait_is_reported() {
    // The report names the read, inside the conversion of a unit, and the copy.
    is_reported("no_wait", "ASYNC: read", TILE, COPY);
}

#[test]
fn a_missing_guard_is_reported() {
    is_reported("no_guard_below", "OUT OF BOUNDS read of 16 bytes", TILE, COPY);
    is_reported("no_guard_of_images", "OUT OF BOUNDS read of 16 bytes", TILE, COPY);
    is_reported("no_guard_of_output", "OUT OF BOUNDS", EPILOGUE, "__stcg(reinterpret_cast<uint4*>(out), packed);");
}
