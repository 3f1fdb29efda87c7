//! Shapes and tensors. Layout is NHWC, contiguous, everywhere in memory; PyTorch's OIHW / NCHW only in files.
//!
//! Letters used throughout: B or N batch, H height, W width, C channels in, K channels out, T taps (height * width of a filter).

use crate::device::Memory;
use crate::error::Result;

/// Shape of an activation: [N, H, W, C].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Images.
    pub n: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Shape {
    /// [n, h, w, c].
    pub fn new(n: usize, h: usize, w: usize, c: usize) -> Self {
        Shape { n, h, w, c }
    }
    /// Elements.
    pub fn len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }
    /// True where any extent is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Pixels of one image.
    pub fn pixels(&self) -> usize {
        self.h * self.w
    }
    /// The same pixels with `c` channels.
    pub fn with_c(self, c: usize) -> Self {
        Shape { c, ..self }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}, {}, {}, {}]", self.n, self.h, self.w, self.c)
    }
}

/// An owned activation on a device. Dropping it returns its memory to the arena.
pub struct Tensor<M: Memory> {
    /// Its shape.
    pub shape: Shape,
    /// Its elements.
    pub data: M::Buffer,
}

impl<M: Memory> Tensor<M> {
    /// An uninitialised tensor of float32.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(memory: &M, shape: Shape) -> Result<Self> {
        Ok(Tensor { shape, data: memory.alloc(shape.len())? })
    }

    /// An uninitialised tensor of the device's activation type.
    ///
    /// # Errors
    /// Out of memory.
    pub fn activation(memory: &M, shape: Shape) -> Result<Self> {
        Ok(Tensor { shape, data: memory.alloc_activation(shape.len())? })
    }

    /// A tensor of float32 with the given elements, in NHWC order.
    ///
    /// # Errors
    /// Out of memory, or the number of elements is not that of the shape.
    pub fn from_slice(memory: &M, shape: Shape, values: &[f32]) -> Result<Self> {
        let mut t = Tensor::new(memory, shape)?;
        memory.upload(values, t.view_mut())?;
        Ok(t)
    }

    /// A view of all elements.
    pub fn view(&self) -> M::Slice<'_> {
        M::slice(&self.data, 0..self.shape.len())
    }

    /// An exclusive view of all elements.
    pub fn view_mut(&mut self) -> M::SliceMut<'_> {
        #[allow(clippy::single_range_in_vec_init)] // one view, not a list of numbers
        let [all] = M::slices_mut(&mut self.data, [0..self.shape.len()]);
        all
    }

    /// The elements on the host.
    ///
    /// # Errors
    /// The device failed.
    pub fn to_vec(&self, memory: &M) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.shape.len()];
        memory.download(self.view(), &mut out)?;
        Ok(out)
    }
}

/// Copies [N, C, H, W] (files) to [N, H, W, C] (memory).
pub fn nchw_to_nhwc(src: &[f32], s: Shape) -> Vec<f32> {
    let mut dst = vec![0.0; s.len()];
    let p = s.pixels();
    for n in 0..s.n {
        for c in 0..s.c {
            for i in 0..p {
                dst[(n * p + i) * s.c + c] = src[(n * s.c + c) * p + i];
            }
        }
    }
    dst
}

/// Copies [N, H, W, C] (memory) to [N, C, H, W] (files).
pub fn nhwc_to_nchw(src: &[f32], s: Shape) -> Vec<f32> {
    let mut dst = vec![0.0; s.len()];
    let p = s.pixels();
    for n in 0..s.n {
        for c in 0..s.c {
            for i in 0..p {
                dst[(n * s.c + c) * p + i] = src[(n * p + i) * s.c + c];
            }
        }
    }
    dst
}
