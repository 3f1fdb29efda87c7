//! On a GPU and its simulator: the kernels of the parts, one after the other.

use super::{ResampleConv, ResampleConvDims, ResampleConvGradients, Resampling};
use crate::device::Memory;
use crate::device::gpu::{Gpu, GpuSlice, GpuSliceMut};
use crate::device::launcher::Launcher;
use crate::error::Result;
use crate::ops::conv::{Conv, Direction, Epilogue, Filter, Operand, Output, Prologue, WeightGradients};
use crate::ops::resize::Resize;

impl<L: Launcher> ResampleConv for Gpu<L> {
    fn resample_conv_packed_len(&self, dims: &ResampleConvDims, direction: Direction) -> usize {
        self.conv_packed_len(&dims.conv(direction))
    }

    fn resample_conv_pack(
        &self,
        dims: &ResampleConvDims,
        direction: Direction,
        w: GpuSlice<'_>,
        packed: GpuSliceMut<'_>,
    ) -> Result<()> {
        dims.validate()?;
        let filter = Filter { w, w_res: None, forward_c: dims.c as usize, scale: None };
        self.conv_pack(&dims.conv(direction), direction, filter, packed)
    }

    fn resample_conv<'a>(
        &self,
        dims: &ResampleConvDims,
        x: GpuSlice<'a>,
        packed: GpuSlice<'a>,
        biases: [Option<GpuSlice<'a>>; 2],
        y: GpuSliceMut<'_>,
        stats: Option<GpuSliceMut<'_>>,
    ) -> Result<()> {
        dims.validate()?;
        let (conv, k0) = (dims.conv(Direction::Forward), dims.k as usize);
        let [bias, bias_res] = biases;
        let epilogue = Epilogue { bias, bias_res, ..Epilogue::default() };
        match dims.resampling {
            Resampling::Double => {
                let mut large = self.alloc_activation(dims.large() * dims.c as usize)?;
                self.double_forward(&dims.resize(dims.c), x, Self::all_mut(&mut large), None)?;
                let input = Operand::one(Self::all(&large));
                let out = Output { y0: y, y1: None, k0, stats };
                self.conv(&conv, input, Prologue::none(), None, packed, epilogue, out)
            }
            Resampling::Keep { offset } => {
                let mut all = self.alloc_activation(dims.large() * k0)?;
                let out = Output { y0: Self::all_mut(&mut all), y1: None, k0, stats: None };
                self.conv(&conv, Operand::one(x), Prologue::none(), None, packed, epilogue, out)?;
                self.keep_forward(&dims.resize(dims.k), offset, Self::all(&all), y, stats)
            }
        }
    }

    fn resample_conv_backward<'a>(
        &self,
        dims: &ResampleConvDims,
        x: GpuSlice<'a>,
        packed: GpuSlice<'a>,
        dy: GpuSlice<'a>,
        add: Option<GpuSlice<'a>>,
        out: ResampleConvGradients<'_, Self>,
    ) -> Result<()> {
        dims.validate()?;
        let (conv, back) = (dims.conv(Direction::Forward), dims.conv(Direction::Dgrad));
        let ResampleConvGradients { dx, dw, db } = out;
        let weights = WeightGradients { dw, dw_res: None, db: Some(db), db_res: None, border_sums: None };
        let k0 = dims.c as usize;
        match dims.resampling {
            Resampling::Double => {
                let mut large = self.alloc_activation(dims.large() * k0)?;
                self.double_forward(&dims.resize(dims.c), x, Self::all_mut(&mut large), None)?;
                self.conv_wgrad(&conv, Operand::one(Self::all(&large)), Prologue::none(), None, dy, weights)?;
                drop(large);
                let mut dlarge = self.alloc_activation(dims.large() * k0)?;
                let out = Output { y0: Self::all_mut(&mut dlarge), y1: None, k0, stats: None };
                self.conv(&back, Operand::one(dy), Prologue::none(), None, packed, Epilogue::default(), out)?;
                self.double_backward(&dims.resize(dims.c), Self::all(&dlarge), add, dx)
            }
            Resampling::Keep { offset } => {
                let mut all = self.alloc_activation(dims.large() * dims.k as usize)?;
                self.keep_backward(&dims.resize(dims.k), offset, dy, Self::all_mut(&mut all))?;
                self.conv_wgrad(&conv, Operand::one(x), Prologue::none(), None, Self::all(&all), weights)?;
                let epilogue = Epilogue { add0: add, ..Epilogue::default() };
                let out = Output { y0: dx, y1: None, k0, stats: None };
                self.conv(&back, Operand::one(Self::all(&all)), Prologue::none(), None, packed, epilogue, out)
            }
        }
    }
}
