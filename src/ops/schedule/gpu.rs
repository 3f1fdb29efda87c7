//! The schedule on devices with kernels: launches of `kernels/schedule.cu`.

use bytemuck::{Pod, Zeroable};

use super::{Schedule, ScheduleDims, ScheduleOutput};
use crate::device::gpu::{DevicePtr, Gpu, GpuSlice};
use crate::device::launcher::Launcher;
use crate::error::{Error, Result};
use crate::kernels;
use crate::ops::expect_f32;

const OP: &str = "schedule";

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScheduleArgs {
    times: DevicePtr,
    rates: DevicePtr,
    embedding: DevicePtr,
    stats: DevicePtr,
    start: f64,
    span: f64,
    min_bar: f64,
    max_bar: f64,
    e: u32,
    linear: u32,
    embed_signal: u32,
    single: u32,
}

impl<L: Launcher> Schedule for Gpu<L> {
    fn schedule(&self, dims: &ScheduleDims, times: GpuSlice<'_>, out: ScheduleOutput<'_, Self>) -> Result<()> {
        let (n, e) = (dims.n as usize, dims.e as usize);
        if e == 0 || e % 2 != 0 {
            let what = format!("the embedding needs an even number of channels, not {e}");
            return Err(Error::Shape { op: OP, what });
        }
        expect_f32(OP, "times", times, n)?;
        expect_f32(OP, "rates", out.rates.shared(), 2 * n)?;
        expect_f32(OP, "embedding", out.embedding.shared(), n * e)?;
        expect_f32(OP, "stats", out.stats.shared(), n * e * 2)?;
        // Angles are those of the cosine schedule only; bounds of a linear one need not be cosines.
        let angle = |rate: f64| if dims.linear == 0 { rate.acos() } else { 0.0 };
        let start = angle(dims.max_signal);
        let args = ScheduleArgs {
            times: times.ptr(),
            rates: out.rates.ptr(),
            embedding: out.embedding.ptr(),
            stats: out.stats.ptr(),
            start,
            span: angle(dims.min_signal) - start,
            min_bar: dims.min_signal,
            max_bar: dims.max_signal,
            e: dims.e,
            linear: dims.linear,
            embed_signal: dims.embed_signal,
            single: dims.single,
        };
        self.launch(&kernels::SCHEDULE_FWD_F32, [dims.n, 1, 1], [kernels::SCHEDULE_THREADS, 1, 1], 0, &args)
    }
}
