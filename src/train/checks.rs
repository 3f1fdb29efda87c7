//! What is looked at before a run begins or goes on: that its settings fit its network and labels, and that a checkpoint is of the same run.

use std::path::{Path, PathBuf};

use crate::config::unet::TimeEmbedding;
use crate::config::{Config, LrSchedule};
use crate::data::Labels;
use crate::error::{Error, Result};
use crate::train::checkpoint::{self, Checkpoint};
use crate::train::progress::Progress;
use crate::train::run_dir::RunDir;

/// A resumed run may differ from its checkpoint in these keys only.
const MAY_CHANGE: [&str; 4] = ["epochs", "steps", "data", "workers"];

/// The checkpoint that `path` (a run or one of its checkpoints) stands for.
pub(super) fn find_checkpoint(path: &Path, progress: &Progress) -> Result<(PathBuf, Checkpoint)> {
    let root = RunDir::root_of(path)?;
    let is_one = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-"));
    if is_one {
        return Ok((path.to_path_buf(), checkpoint::load(path)?));
    }
    let Some(latest) = checkpoint::latest(&root)? else {
        return Err(Error::input(path, "the run has no checkpoint yet; start it again without --resume"));
    };
    latest.skipped.iter().for_each(|damaged| progress.line(&damaged.passed_over()));
    let checkpoint = checkpoint::load(&latest.path)?;
    Ok((latest.path, checkpoint))
}

/// Steps of an epoch over `pictures` to train on.
pub(super) fn steps_per_epoch(config: &Config, pictures: usize) -> u64 {
    ((pictures * config.repeat).div_ceil(config.batch_size) as u64).max(1)
}

/// Steps of the whole run.
pub(super) fn total_steps(config: &Config, pictures: usize) -> u64 {
    match config.steps {
        0 => config.epochs as u64 * steps_per_epoch(config, pictures),
        steps => steps as u64,
    }
}

/// Refuses what can be sampled from but not trained.
pub(crate) fn check_trainable(config: &Config) -> Result<()> {
    let fourier = config.unet.as_ref().is_some_and(|unet| unet.time_embedding_type == TimeEmbedding::Fourier);
    if fourier {
        return Err(Error::Usage(format!(
            "unet.time_embedding_type fourier with schedule {}: that embedding takes the logarithm of the timestep, and the schedules \
             here have timesteps of 0 and below; train with unet.time_embedding_type positional",
            config.get("schedule").replace('"', "")
        )));
    }
    Ok(())
}

/// Refuses a network that does not know the classes of the labels, and one that knows classes where there are none.
pub(crate) fn check_classes(config: &Config, labels: Option<&Labels>) -> Result<()> {
    let known = config.class_embeds();
    let Some(labels) = labels else {
        return match known {
            None => Ok(()),
            Some(n) => Err(Error::Usage(format!(
                "unet.num_class_embeds {n} with labels none: a network that knows classes is trained with them; give a CSV file of \
                 file,label as labels, or leave unet.num_class_embeds out"
            ))),
        };
    };
    let classes = labels.classes().len();
    let wanted = classes + usize::from(config.label_dropout > 0.0);
    if known == Some(wanted) {
        return Ok(());
    }
    let known = known.map_or("missing".to_string(), |n| n.to_string());
    let null = if wanted > classes { ", and one that stands for no class as label_dropout is above 0" } else { "" };
    Err(Error::Usage(format!(
        "unet.num_class_embeds is {known}, but labels {} has {classes} classes{null}; expected unet.num_class_embeds {wanted}",
        config.labels
    )))
}

/// Refuses a checkpoint of another configuration, by key.
pub(super) fn check_same(config: &Config, saved: &str, path: &Path, pictures: usize) -> Result<()> {
    let saved = Config::from_toml(saved)?;
    let (then, now) = (total_steps(&saved, pictures), total_steps(config, pictures));
    // The steps that the run has taken would have been others, so it could not end as one that ran through.
    if config.lr_schedule != LrSchedule::Constant && then != now {
        let schedule = config.get("lr_schedule").replace('"', "");
        return Err(Error::Usage(format!(
            "--epochs or --steps: {now} steps are asked for, but lr_schedule {schedule} ends at step {then} of this run, and its steps \
             so far were taken for that; go on without them, or start a new run (lr_schedule constant can be extended)"
        )));
    }
    let keys: Vec<&str> =
        crate::config::KEYS.iter().map(|k| k.name).chain(["unet"]).filter(|name| !MAY_CHANGE.contains(name)).collect();
    match config.differences(&saved, &keys).first() {
        None => Ok(()),
        Some((key, ours, theirs)) => Err(Error::input(
            path,
            format!("is a checkpoint of another configuration: {key} is {theirs} there and {ours} here"),
        )),
    }
}
