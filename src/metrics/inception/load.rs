//! From a file's tensors to convolutions with their batch norm folded in, and what is wrong with a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::Variant;
use super::layers::ConvLayer;
use crate::error::{Error, Result};
use crate::train::tensor_file::NamedTensor;

/// Of every batch norm of the network.
const EPSILON: f64 = 1e-3;
/// The last layer: [classes, 2048].
const CLASSIFIER: &str = "fc.weight";
/// The longest header that is looked at.
const MAX_HEADER: u64 = 100_000_000;

/// Classes of the last layer, from a file's header.
pub(super) fn classes(path: &Path) -> Result<Option<usize>> {
    let io = |e| Error::io(path, "read the header")(e);
    let bad = || Error::input(path, "not a safetensors file: its header cannot be read");
    let mut file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(|_| bad())?;
    let header_length = u64::from_le_bytes(prefix);
    if header_length > MAX_HEADER || header_length > length - 8 {
        return Err(bad());
    }
    let mut header = vec![0; header_length as usize];
    file.read_exact(&mut header).map_err(io)?;
    let header: safetensors::tensor::Metadata = serde_json::from_slice(&header).map_err(|_| bad())?;
    Ok(header.info(CLASSIFIER).and_then(|info| info.shape.first().copied()))
}

/// Refuses weights whose last layer has the other variant's classes.
pub(super) fn expect_variant(path: &Path, tensors: &BTreeMap<String, NamedTensor>, variant: Variant) -> Result<()> {
    let found = tensors.get(CLASSIFIER).and_then(|fc| Variant::of_classes(*fc.shape.first()?));
    let (this, other) = match variant {
        Variant::Torchvision => ("torchvision's Inception-v3 (1000 classes)", "the port for FID (1008 classes)"),
        Variant::Fid => ("the port for FID (1008 classes)", "torchvision's Inception-v3 (1000 classes)"),
    };
    match found {
        Some(found) if found != variant => {
            Err(Error::input(path, format!("these are weights of {other}, expected those of {this}")))
        }
        _ => Ok(()),
    }
}

/// Filter [K, C, R, S] and bias `[K]` of a convolution with its batch norm: w gamma / sqrt(var + eps), and beta - mean gamma / sqrt(var + eps).
pub(super) fn folded(
    path: &Path,
    tensors: &BTreeMap<String, NamedTensor>,
    layer: &ConvLayer,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let find = |name: String, shape: &[usize]| match tensors.get(&name) {
        None => Err(Error::input(path, missing(&name, tensors))),
        Some(tensor) if tensor.shape == shape => Ok(&tensor.data),
        Some(tensor) => {
            let what = format!("{name} has shape {:?}, Inception-v3 has {shape:?}", tensor.shape);
            Err(Error::input(path, what))
        }
    };
    let [c, k, kernel_h, kernel_w] = [layer.c, layer.k, layer.kernel[0], layer.kernel[1]].map(|e| e as usize);
    let weight = find(format!("{}.conv.weight", layer.name), &[k, c, kernel_h, kernel_w])?;
    let norm = |part: &str| find(format!("{}.bn.{part}", layer.name), &[k]);
    let (gamma, beta, mean, var) = (norm("weight")?, norm("bias")?, norm("running_mean")?, norm("running_var")?);
    let (mut filter, mut bias) = (Vec::with_capacity(weight.len()), Vec::with_capacity(k));
    for (i, weight) in weight.chunks_exact(c * kernel_h * kernel_w).enumerate() {
        let factor = f64::from(gamma[i]) / (f64::from(var[i]) + EPSILON).sqrt();
        let shift = f64::from(beta[i]) - f64::from(mean[i]) * factor;
        if !shift.is_finite() || !factor.is_finite() {
            let what =
                format!("{}.bn: channel {i} has statistics that make no number; the file is damaged", layer.name);
            return Err(Error::input(path, what));
        }
        bias.push(shift as f32);
        filter.extend(weight.iter().map(|&w| (f64::from(w) * factor) as f32));
    }
    Ok((filter, bias))
}

/// What to say of a tensor that is not there: what the file seems to hold instead.
fn missing(name: &str, tensors: &BTreeMap<String, NamedTensor>) -> String {
    let some: Vec<&str> = tensors.keys().take(3).map(String::as_str).collect();
    let holds = match some.len() {
        0 => "it holds no tensors".to_string(),
        _ => format!("its {} tensors begin with {}", tensors.len(), some.join(", ")),
    };
    let ends_with = tensors.keys().find(|key| key.ends_with(name));
    let advice = match ends_with {
        Some(key) => format!("; {key} has more before it: save the state of the network itself"),
        None if tensors.contains_key("blocks.0.0.conv.weight") => {
            "; it was saved from pytorch-fid's wrapper: save the state of `fid_inception_v3()` instead".into()
        }
        None => "; expected a file with the names of torchvision's inception_v3".into(),
    };
    format!("no weights of Inception-v3: {name} is missing; {holds}{advice}")
}
