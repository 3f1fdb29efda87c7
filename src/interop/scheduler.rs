//! `scheduler_config.json` of the diffusers library to keys of our configuration, and back.
//!
//! | class | sampler |
//! |---|---|
//! | `DDIMScheduler` | ddim |
//! | `DDPMScheduler` | ddpm |
//! | `DPMSolverMultistepScheduler` | dpm++2m |
//!
//! An option that would change the numbers and is not supported is refused by name; an option that only describes what we do anyway is
//! accepted with that value alone.

use serde_json::{Map, Value, json};

use crate::config::{Config, Predict, SamplerKind, ScheduleKind, SpacingKind, VarianceKind};

/// The version of the library whose files are written here, and against which they are tested.
pub const DIFFUSERS: &str = "0.42.0";

/// Options that mean nothing to a sampler of pictures, or that other options switch off.
const WITHOUT_EFFECT: [&str; 3] = ["tensor_format", "flow_shift", "time_shift_type"];

/// Options that are supported with one value only, which is the library's default; `null` stands for it too.
fn only(name: &str) -> Option<Value> {
    Some(match name {
        "trained_betas" | "timestep_values" | "lambda_min_clipped" => Value::Null,
        "solver_order" => json!(2),
        "algorithm_type" => json!("dpmsolver++"),
        "solver_type" => json!("midpoint"),
        "lower_order_final" => json!(true),
        "final_sigmas_type" => json!("zero"),
        "euler_at_final"
        | "use_exponential_sigmas"
        | "use_beta_sigmas"
        | "use_lu_lambdas"
        | "use_flow_sigmas"
        | "use_dynamic_shifting" => json!(false),
        _ => return None,
    })
}

/// Puts the options of a scheduler into `config`: keys of the schedule, of what is predicted, and of the sampler.
///
/// # Errors
/// A class, an option or a value that is not supported, by name.
pub fn read(json: &Map<String, Value>, config: &mut Config) -> Result<(), String> {
    let class = json.get("_class_name").and_then(Value::as_str).unwrap_or("DDIMScheduler");
    config.sampler = match class {
        "DDIMScheduler" => SamplerKind::Ddim,
        "DDPMScheduler" => SamplerKind::Ddpm,
        "DPMSolverMultistepScheduler" => SamplerKind::DpmPlusPlus2M,
        _ => {
            return Err(format!(
                "_class_name is `{class}`; expected DDIMScheduler, DDPMScheduler or DPMSolverMultistepScheduler. Most schedulers can be \
                 made from each other: DDIMScheduler.from_config(scheduler.config).save_pretrained(FOLDER)"
            ));
        }
    };
    library_defaults(config);
    let (mut clips, mut range) = (config.sampler != SamplerKind::DpmPlusPlus2M, 1.0);
    let (mut dynamic, mut quantile, mut karras) = (false, 0.995, false);
    for (name, value) in json {
        let bad =
            |expected: &str| format!("`{name}` is {value}, which this program does not support; expected {expected}");
        let flag = || value.as_bool().ok_or_else(|| bad("true or false"));
        let real = || value.as_f64().ok_or_else(|| bad("a number"));
        let whole = || value.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| bad("a whole number"));
        match name.as_str() {
            _ if name.starts_with('_') || WITHOUT_EFFECT.contains(&name.as_str()) => {}
            "num_train_timesteps" => config.train_timesteps = whole()?,
            "beta_start" => config.beta_start = real()?,
            "beta_end" => config.beta_end = real()?,
            "beta_schedule" => {
                let expected = "linear, scaled_linear, squaredcos_cap_v2 or sigmoid";
                config.schedule = schedule(value).ok_or_else(|| bad(expected))?;
            }
            "prediction_type" => {
                config.predict = predict(value).ok_or_else(|| bad("epsilon, sample or v_prediction"))?
            }
            "rescale_betas_zero_snr" => config.zero_snr = flag()?,
            "clip_sample" => clips = flag()?,
            "clip_sample_range" => range = real()?,
            "thresholding" => dynamic = flag()?,
            "dynamic_thresholding_ratio" => quantile = real()?,
            "sample_max_value" => config.sample_quantile_max = real()?,
            "steps_offset" => config.sample_offset = whole()?,
            "set_alpha_to_one" => config.sample_to_clean = flag()?,
            "timestep_spacing" => {
                config.sample_spacing = spacing(value).ok_or_else(|| bad("leading, trailing or linspace"))?;
            }
            "use_karras_sigmas" => karras = value.as_bool().unwrap_or(false),
            "variance_type" if value.is_null() => {}
            "variance_type" => {
                config.sample_variance = variance(value).ok_or_else(|| bad("fixed_small or fixed_large"))?;
            }
            other => match only(other) {
                Some(expected) if value.is_null() || *value == expected => {}
                Some(expected) => return Err(bad(&expected.to_string())),
                None => return Err(format!("unknown option `{name}` of a scheduler (value {value})")),
            },
        }
    }
    if karras {
        config.sample_spacing = SpacingKind::Karras;
    }
    config.sample_clip = if clips && !dynamic { range } else { 0.0 };
    config.sample_quantile = if dynamic { quantile } else { 0.0 };
    Ok(())
}

/// What the classes take where nothing is given.
fn library_defaults(config: &mut Config) {
    config.schedule = ScheduleKind::Linear;
    (config.beta_start, config.beta_end) = (1e-4, 0.02);
    config.train_timesteps = 1000;
    config.zero_snr = false;
    config.predict = Predict::Noise;
    config.sample_spacing = match config.sampler {
        SamplerKind::DpmPlusPlus2M => SpacingKind::Linspace,
        _ => SpacingKind::Leading,
    };
    config.sample_offset = 0;
    config.sample_quantile_max = 1.0;
    config.sample_variance = VarianceKind::Small;
    config.sample_to_clean = true;
}

/// What [`write()`] made.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// The `scheduler_config.json`.
    pub json: Map<String, Value>,
    /// Class of the scheduler.
    pub class: &'static str,
    /// Class of the pipeline that goes with it.
    pub pipeline: &'static str,
    /// Settings that do not travel.
    pub notes: Vec<String>,
}

/// The `scheduler_config.json` of a configuration.
///
/// # Errors
/// A schedule or sampler that the library's three classes do not have, by key.
pub fn write(config: &Config) -> Result<Written, String> {
    let key = |name: &str| config.get(name).replace('"', "");
    let schedule = match config.schedule {
        ScheduleKind::Linear => "linear",
        ScheduleKind::ScaledLinear => "scaled_linear",
        ScheduleKind::SquaredcosCapV2 => "squaredcos_cap_v2",
        ScheduleKind::Sigmoid => "sigmoid",
        ScheduleKind::Cosine | ScheduleKind::Edm => {
            return Err(format!(
                "schedule is {}, which has no name in diffusers; a model that is to travel is trained with schedule linear, \
                 scaled_linear, squaredcos_cap_v2 or sigmoid",
                key("schedule")
            ));
        }
    };
    let spacing = match config.sample_spacing {
        SpacingKind::Leading => "leading",
        SpacingKind::Trailing => "trailing",
        SpacingKind::Linspace => "linspace",
        // The spacing of the times stays the class's default; sigmas are what counts.
        SpacingKind::Karras if config.sampler == SamplerKind::DpmPlusPlus2M => "linspace",
        SpacingKind::Karras | SpacingKind::Quadratic => {
            return Err(format!(
                "sample_spacing is {}, which diffusers has not for the sampler {}; expected leading, trailing or linspace",
                key("sample_spacing"),
                key("sampler")
            ));
        }
    };
    // Heun's method works on any model; a folder names the sampler that comes nearest.
    let (class, pipeline) = match (config.sampler, config.schedule) {
        // The library's ddim and dpm++ do not know this schedule.
        (_, ScheduleKind::Sigmoid) | (SamplerKind::Ddpm, _) => ("DDPMScheduler", "DDPMPipeline"),
        (SamplerKind::Ddim | SamplerKind::Heun, _) => ("DDIMScheduler", "DDIMPipeline"),
        (SamplerKind::DpmPlusPlus2M, _) => ("DPMSolverMultistepScheduler", "DDPMPipeline"),
    };
    let predict = match config.predict {
        Predict::Noise => "epsilon",
        Predict::Image => "sample",
        Predict::Velocity => "v_prediction",
    };
    let mut notes = Vec::new();
    if config.sampler == SamplerKind::Heun || (class == "DDPMScheduler" && config.sampler != SamplerKind::Ddpm) {
        notes.push(format!(
            "{class} stands for the sampler {}, which it does not have for this schedule",
            key("sampler")
        ));
    }
    if class == "DPMSolverMultistepScheduler" && config.sample_clip > 0.0 {
        notes.push(format!("sample_clip {} is left out: {class} has no such option", config.sample_clip));
    }
    let dynamic = config.sample_quantile > 0.0;
    let mut map = Map::new();
    let mut put = |name: &str, value: Value| map.insert(name.into(), value);
    put("_class_name", json!(class));
    put("_diffusers_version", json!(DIFFUSERS));
    put("beta_end", json!(config.beta_end));
    put("beta_schedule", json!(schedule));
    put("beta_start", json!(config.beta_start));
    put("dynamic_thresholding_ratio", json!(if dynamic { config.sample_quantile } else { 0.995 }));
    put("num_train_timesteps", json!(config.train_timesteps));
    put("prediction_type", json!(predict));
    put("rescale_betas_zero_snr", json!(config.zero_snr));
    put("sample_max_value", json!(config.sample_quantile_max));
    put("steps_offset", json!(config.sample_offset));
    put("thresholding", json!(dynamic));
    put("timestep_spacing", json!(spacing));
    put("trained_betas", Value::Null);
    match class {
        "DPMSolverMultistepScheduler" => {
            for name in ["solver_order", "algorithm_type", "solver_type", "lower_order_final", "final_sigmas_type"] {
                put(name, only(name).unwrap_or(Value::Null));
            }
            put("use_karras_sigmas", json!(config.sample_spacing == SpacingKind::Karras));
        }
        _ => {
            put("clip_sample", json!(config.sample_clip > 0.0));
            put("clip_sample_range", json!(if config.sample_clip > 0.0 { config.sample_clip } else { 1.0 }));
        }
    }
    match class {
        "DDIMScheduler" => put("set_alpha_to_one", json!(config.sample_to_clean)),
        "DDPMScheduler" => {
            let large = config.sample_variance == VarianceKind::Large;
            put("variance_type", json!(if large { "fixed_large" } else { "fixed_small" }))
        }
        _ => None,
    };
    Ok(Written { json: map, class, pipeline, notes })
}

fn schedule(value: &Value) -> Option<ScheduleKind> {
    Some(match value.as_str()? {
        "linear" => ScheduleKind::Linear,
        "scaled_linear" => ScheduleKind::ScaledLinear,
        "squaredcos_cap_v2" => ScheduleKind::SquaredcosCapV2,
        "sigmoid" => ScheduleKind::Sigmoid,
        _ => return None,
    })
}

fn predict(value: &Value) -> Option<Predict> {
    Some(match value.as_str()? {
        "epsilon" => Predict::Noise,
        "sample" => Predict::Image,
        "v_prediction" => Predict::Velocity,
        _ => return None,
    })
}

fn spacing(value: &Value) -> Option<SpacingKind> {
    Some(match value.as_str()? {
        "leading" => SpacingKind::Leading,
        "trailing" => SpacingKind::Trailing,
        "linspace" => SpacingKind::Linspace,
        _ => return None,
    })
}

fn variance(value: &Value) -> Option<VarianceKind> {
    Some(match value.as_str()? {
        "fixed_small" | "fixed_small_log" => VarianceKind::Small,
        "fixed_large" | "fixed_large_log" => VarianceKind::Large,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Family;

    fn parse(text: &str) -> Result<Config, String> {
        let mut config = Config { family: Family::Unet2d, ..Config::seed_preset() };
        let json: Value = serde_json::from_str(text).unwrap();
        read(json.as_object().unwrap(), &mut config).map(|()| config)
    }

    #[test]
    fn the_first_public_ddpm() {
        let config = parse(
            r#"{"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear",
                "beta_start": 0.0001, "clip_sample": true, "num_train_timesteps": 1000, "timestep_values": null,
                "trained_betas": null, "variance_type": "fixed_large", "tensor_format": "pt"}"#,
        )
        .unwrap();
        assert_eq!(
            (config.sampler, config.schedule, config.sample_clip, config.sample_variance),
            (SamplerKind::Ddpm, ScheduleKind::Linear, 1.0, VarianceKind::Large)
        );
        assert_eq!((config.beta_start, config.beta_end, config.train_timesteps), (1e-4, 0.02, 1000));
    }

    #[test]
    fn options_travel_both_ways() {
        for text in [
            r#"{"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
                "clip_sample": false, "set_alpha_to_one": false, "steps_offset": 1, "prediction_type": "v_prediction",
                "timestep_spacing": "trailing", "rescale_betas_zero_snr": true}"#,
            r#"{"_class_name": "DDIMScheduler", "thresholding": true, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0}"#,
            r#"{"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid", "clip_sample_range": 2.5, "num_train_timesteps": 400}"#,
            r#"{"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": true, "lambda_min_clipped": null}"#,
            r#"{"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "sample", "timestep_spacing": "leading"}"#,
        ] {
            let config = parse(text).unwrap();
            let written = write(&config).unwrap();
            let again = parse(&Value::Object(written.json).to_string()).unwrap();
            assert_eq!(again, config, "{text}");
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (text, part) in [
            (r#"{"_class_name": "PNDMScheduler"}"#, "PNDMScheduler"),
            (r#"{"trained_betas": [0.1]}"#, "trained_betas"),
            (r#"{"beta_schedule": "laplace"}"#, "laplace"),
            (r#"{"prediction_type": "flow_prediction"}"#, "flow_prediction"),
            (r#"{"solver_order": 3}"#, "`solver_order` is 3"),
            (r#"{"variance_type": "learned_range"}"#, "learned_range"),
            (r#"{"frobnicate": 1}"#, "frobnicate"),
            (r#"{"num_train_timesteps": 1.5}"#, "num_train_timesteps"),
        ] {
            let refusal = parse(text).unwrap_err();
            assert!(refusal.contains(part), "{text}: {refusal}");
        }
        let edm = Config { schedule: ScheduleKind::Edm, ..Config::seed_preset() };
        assert!(write(&edm).unwrap_err().contains("edm"));
    }
}
