//! The first checkpoint of a run whose weights come from elsewhere: training goes on from it, and samples are drawn from it.

use crate::config::Config;
use crate::diffusion::normalizer::Normalizer;
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::train::checkpoint::Checkpoint;
use crate::train::state::{TrainState, import_model};
use crate::train::tensor_file::NamedTensor;
use crate::train::trainer::{NORMALIZER_MEAN, NORMALIZER_STD, Resumable};
use crate::train::window::Window;

/// A checkpoint at step 0: the weights of `model`, moments of zero, and the moving average at the weights. `origin` is told in the place
/// of the preset's name.
///
/// Training may go on with any pictures, as none have been seen.
///
/// # Errors
/// A tensor is missing, of another shape or not finite; the device failed.
pub fn checkpoint<B: Backend>(
    backend: &B,
    config: &Config,
    model: &[NamedTensor],
    normalizer: Normalizer,
    origin: &str,
) -> Result<Checkpoint> {
    if let Some(bad) = model.iter().find(|t| t.data.iter().any(|v| !v.is_finite())) {
        return Err(Error::Failed(format!("`{}` holds numbers that are not finite", bad.name)));
    }
    let mut state = TrainState::new(backend, config)?;
    import_model(backend, &mut state.weights, model)?;
    state.restart_ema(backend)?;
    let mut tensors = state.export_model(backend)?;
    tensors.extend(normalizer_tensors(&normalizer));
    let resumable = Resumable {
        preset: origin.into(),
        fingerprint: String::new(),
        seconds: 0.0,
        normalizer,
        window: Window::default(),
        labels: None,
        split: None,
    };
    let resumable =
        serde_json::to_value(&resumable).map_err(|e| Error::Failed(format!("cannot write the run's state: {e}")))?;
    Ok(Checkpoint {
        config_toml: config.to_toml(),
        step: 0,
        epoch: 0,
        state: resumable,
        model: tensors,
        optimizer: state.export_optimizer(backend)?,
    })
}

/// A normaliser as the tensors of a model file.
pub fn normalizer_tensors(normalizer: &Normalizer) -> [NamedTensor; 2] {
    let (mean, std) = (normalizer.mean(), normalizer.std());
    [(NORMALIZER_MEAN, mean), (NORMALIZER_STD, std)].map(|(name, data)| NamedTensor {
        name: name.into(),
        shape: vec![data.len()],
        data,
    })
}
