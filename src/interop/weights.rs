//! Weights by name: other names and shapes of the same tensors, and what is missing or too much.

use std::path::Path;

use crate::error::{Error, Result};
use crate::train::tensor_file::{self, NamedTensor};

/// Names of attention's layers in files of diffusers before 0.15, and today's.
const OLD_ATTENTION: [(&str, &str); 4] =
    [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];

/// Most names that a message lists.
const SHOWN: usize = 6;

/// A tensor that a network expects: its name and shape in files.
pub type Expected = (String, Vec<usize>);

/// Reads all tensors of a file as float32. Notes tell of types that were converted.
///
/// # Errors
/// The file is no safetensors file, or holds tensors that are no floats.
pub fn read(path: &Path) -> Result<(Vec<NamedTensor>, Vec<String>)> {
    let contents = tensor_file::read_any_float(path)?;
    let mut notes = Vec::new();
    if !contents.converted.is_empty() {
        let (types, file) = (contents.converted.join(", "), path.display());
        notes.push(format!("{file}: weights of type {types} are taken as F32"));
    }
    Ok((contents.tensors, notes))
}

/// Brings `tensors` to the names and shapes that are expected, in their order.
///
/// Old names of attention's layers are understood, and their weights as 1x1 convolutions.
///
/// # Errors
/// Tensors are missing, of another shape, or not known; named, as many as fit into a message.
pub fn fit(path: &Path, tensors: Vec<NamedTensor>, expected: &[Expected]) -> Result<Vec<NamedTensor>> {
    let mut found: std::collections::BTreeMap<String, NamedTensor> =
        tensors.into_iter().map(|tensor| (today(&tensor.name), tensor)).collect();
    let (mut fitted, mut missing, mut wrong) = (Vec::with_capacity(expected.len()), Vec::new(), Vec::new());
    for (name, shape) in expected {
        match found.remove(name) {
            None => missing.push(name.clone()),
            Some(mut tensor) if same_matrix(&tensor.shape, shape) => {
                tensor.name = name.clone();
                tensor.shape = shape.clone();
                fitted.push(tensor);
            }
            Some(tensor) => wrong.push(format!("{} has shape {:?}, expected {shape:?}", tensor.name, tensor.shape)),
        }
    }
    let unknown: Vec<String> = found.into_values().map(|tensor| tensor.name).collect();
    let refusals = [("missing", missing), ("of another shape", wrong), ("not part of this network", unknown)];
    let told: Vec<String> =
        refusals.iter().filter(|(_, names)| !names.is_empty()).map(|(what, names)| list(what, names)).collect();
    if told.is_empty() {
        return Ok(fitted);
    }
    Err(Error::input(path, format!("the weights do not fit the options of the network: {}", told.join("; "))))
}

/// Today's name of a tensor.
fn today(name: &str) -> String {
    if !name.contains("attentions.") {
        return name.to_string();
    }
    OLD_ATTENTION.iter().fold(name.to_string(), |name, (old, new)| name.replace(old, new))
}

/// Equal, or [K, C] once as a convolution [K, C, 1, 1].
fn same_matrix(found: &[usize], expected: &[usize]) -> bool {
    found == expected
        || matches!((found, expected), ([k, c, 1, 1], [a, b]) | ([a, b], [k, c, 1, 1]) if (k, c) == (a, b))
}

fn list(what: &str, names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    format!("{} {what}: {shown}{more}", names.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[usize]) -> NamedTensor {
        let len = shape.iter().product::<usize>();
        NamedTensor { name: name.into(), shape: shape.into(), data: (0..len).map(|i| i as f32).collect() }
    }

    #[test]
    fn old_attention_is_understood() {
        let expected: Vec<Expected> = vec![
            ("mid_block.attentions.0.to_q.weight".into(), vec![2, 3]),
            ("mid_block.attentions.0.to_out.0.bias".into(), vec![2]),
            ("conv_in.weight".into(), vec![2, 3, 1, 1]),
        ];
        let old = vec![
            tensor("conv_in.weight", &[2, 3, 1, 1]),
            tensor("mid_block.attentions.0.proj_attn.bias", &[2]),
            tensor("mid_block.attentions.0.query.weight", &[2, 3, 1, 1]),
        ];
        let fitted = fit(Path::new("x"), old, &expected).unwrap();
        let got: Vec<Expected> = fitted.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
        assert_eq!(got, expected);
        assert_eq!(fitted[0].data, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let expected: Vec<Expected> = vec![("a.weight".into(), vec![2, 3]), ("b.weight".into(), vec![4])];
        let found = vec![tensor("a.weight", &[3, 2]), tensor("c.weight", &[1])];
        let refusal = fit(Path::new("w.safetensors"), found, &expected).unwrap_err().to_string();
        for part in ["w.safetensors", "1 missing: b.weight", "a.weight has shape [3, 2], expected [2, 3]", "c.weight"] {
            assert!(refusal.contains(part), "{refusal}");
        }
    }
}
