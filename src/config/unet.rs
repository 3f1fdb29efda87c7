//! Options of the family `unet2d`, under the names of the public `diffusers` library's `UNet2DModel` (`unet/config.json` there, the table
//! `[unet]` in our TOML, `--set unet.KEY=VALUE`).
//!
//! What that class can do and this program cannot is refused by name, never ignored.

use serde::{Deserialize, Serialize};

/// Block of a level on the way down. With attention after every residual block, or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlock {
    /// Residual blocks.
    DownBlock2D,
    /// Residual blocks, each followed by self-attention.
    AttnDownBlock2D,
    /// Residual blocks; the resolution is halved by another one.
    ResnetDownsampleBlock2D,
}

/// Block of a level on the way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlock {
    /// Residual blocks.
    UpBlock2D,
    /// Residual blocks, each followed by self-attention.
    AttnUpBlock2D,
    /// Residual blocks; the resolution is doubled by another one.
    ResnetUpsampleBlock2D,
}

/// The block between the way down and the way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MidBlock {
    /// Residual block, attention (unless `add_attention` is false), residual block.
    UNetMidBlock2D,
    /// Nothing (`null` in `config.json`).
    #[serde(rename = "none")]
    None,
}

/// How the timestep enters the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeEmbedding {
    /// Sines and cosines of the timestep (Vaswani et al. 2017; Ho et al. 2020).
    Positional,
    /// Sines and cosines of its logarithm at random, fixed frequencies (Song et al. 2021, "Score-Based Generative Modeling").
    Fourier,
}

/// How a level changes the resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResampleType {
    /// A 3x3 convolution: of stride 2 down, after doubling every pixel up.
    Conv,
    /// A residual block that averages (down) or doubles (up) inside.
    Resnet,
}

/// How the time embedding acts inside a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeScaleShift {
    /// Added after the first convolution.
    Default,
    /// Scales and shifts the second norm's output.
    ScaleShift,
}

/// Options of a `UNet2DModel`. `in_channels` and `out_channels` are the run's `channels`, `sample_size` its `image_size`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnetConfig {
    /// Channels of each level, full resolution first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of a level on the way down; one more on the way up.
    pub layers_per_block: usize,
    /// Blocks of the levels on the way down.
    pub down_block_types: Vec<DownBlock>,
    /// Blocks of the levels on the way up, smallest resolution first.
    pub up_block_types: Vec<UpBlock>,
    /// Block in the middle.
    pub mid_block_type: MidBlock,
    /// Attention in the middle.
    pub add_attention: bool,
    /// Channels of an attention head; missing: one head of all channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_head_dim: Option<usize>,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Groups of the norm before the attention in the middle; missing: as `norm_num_groups`, or no norm with `scale_shift`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attn_norm_num_groups: Option<usize>,
    /// Added to the variance of every group norm.
    pub norm_eps: f64,
    /// 1: zeros on all sides before a strided convolution; 0: only on the right and below.
    pub downsample_padding: usize,
    /// How an `AttnDownBlock2D` halves the resolution.
    pub downsample_type: ResampleType,
    /// How an `AttnUpBlock2D` doubles it.
    pub upsample_type: ResampleType,
    /// How the time embedding acts.
    pub resnet_time_scale_shift: TimeScaleShift,
    /// The network's input is 2 x - 1.
    pub center_input_sample: bool,
    /// How the timestep enters.
    pub time_embedding_type: TimeEmbedding,
    /// Channels of the time embedding; missing: four times the first of `block_out_channels`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_embedding_dim: Option<usize>,
    /// Cosines before sines.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies where they are spread: 0 or 1.
    pub freq_shift: usize,
    /// Share of the activations that is zeroed in training, in every residual block.
    pub dropout: f64,
    /// Classes of a class-conditional network; missing: it knows no classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_class_embeds: Option<usize>,
}

impl Default for UnetConfig {
    /// Small enough for a CPU (preset `unet2d-tiny`).
    fn default() -> Self {
        UnetConfig {
            block_out_channels: vec![32, 64, 64],
            layers_per_block: 1,
            down_block_types: vec![DownBlock::DownBlock2D, DownBlock::DownBlock2D, DownBlock::AttnDownBlock2D],
            up_block_types: vec![UpBlock::AttnUpBlock2D, UpBlock::UpBlock2D, UpBlock::UpBlock2D],
            mid_block_type: MidBlock::UNetMidBlock2D,
            add_attention: true,
            attention_head_dim: Some(32),
            norm_num_groups: 8,
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            downsample_padding: 1,
            downsample_type: ResampleType::Conv,
            upsample_type: ResampleType::Conv,
            resnet_time_scale_shift: TimeScaleShift::Default,
            center_input_sample: false,
            time_embedding_type: TimeEmbedding::Positional,
            time_embedding_dim: None,
            flip_sin_to_cos: true,
            freq_shift: 0,
            dropout: 0.0,
            num_class_embeds: None,
        }
    }
}

/// A `config.json`: the options, and what our configuration calls otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct DiffusersUnet {
    /// The options.
    pub unet: UnetConfig,
    /// `sample_size`, where it is given.
    pub image_size: Option<usize>,
    /// `in_channels` and `out_channels`, which must be equal.
    pub channels: usize,
}

type Json = serde_json::Map<String, serde_json::Value>;

impl UnetConfig {
    /// Channels of the time embedding.
    pub fn time_dim(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.block_out_channels.first().copied().unwrap_or(0))
    }

    /// Heads and channels of a head for attention over `c` channels.
    pub fn heads(&self, c: usize) -> (usize, usize) {
        let dim = self.attention_head_dim.unwrap_or(c);
        (c / dim.max(1), dim)
    }

    /// Times that the resolution is halved.
    pub fn halvings(&self) -> usize {
        self.block_out_channels.len().saturating_sub(1)
    }

    /// Refuses options that do not fit each other; both are named.
    ///
    /// # Errors
    /// What does not fit, and what would.
    pub fn validate(&self) -> Result<(), String> {
        let levels = self.block_out_channels.len();
        let counts = [("down_block_types", self.down_block_types.len()), ("up_block_types", self.up_block_types.len())];
        if levels == 0 || levels > 10 {
            return Err(format!("unet.block_out_channels has {levels} members; expected 1 to 10"));
        }
        for (name, count) in counts {
            if count != levels {
                return Err(format!(
                    "unet.{name} has {count} members and unet.block_out_channels {levels}; they must be as many"
                ));
            }
        }
        if self.block_out_channels.iter().any(|&c| c == 0 || c > 8192) {
            return Err("unet.block_out_channels: each must be from 1 to 8192".into());
        }
        let groups = self.norm_num_groups;
        let divides = |name: &str, groups: usize, c: usize| match groups {
            0 => Err(format!("unet.{name} is 0; expected at least 1")),
            _ if c.is_multiple_of(groups) => Ok(()),
            _ => Err(format!(
                "unet.{name} {groups} does not divide the {c} channels that unet.block_out_channels {:?} leads to",
                self.block_out_channels
            )),
        };
        // Then they divide the concatenated inputs on the way up too.
        self.block_out_channels.iter().try_for_each(|&c| divides("norm_num_groups", groups, c))?;
        let c = &self.block_out_channels;
        if let Some(groups) = self.attn_norm_num_groups {
            divides("attn_norm_num_groups", groups, c[levels - 1])?;
        }
        let attention_at = |i: usize| {
            self.down_block_types[i] == DownBlock::AttnDownBlock2D
                || self.up_block_types[levels - 1 - i] == UpBlock::AttnUpBlock2D
                || (i + 1 == levels && self.add_attention && self.mid_block_type == MidBlock::UNetMidBlock2D)
        };
        for i in (0..levels).filter(|&i| attention_at(i)) {
            let (heads, dim) = self.heads(c[i]);
            if heads == 0 || dim == 0 {
                return Err(format!(
                    "unet.attention_head_dim {dim} is more than the {} channels of level {} (unet.block_out_channels); \
                     a level with attention needs at least one head",
                    c[i],
                    i + 1
                ));
            }
        }
        let half = c[0] / 2;
        if self.time_embedding_type == TimeEmbedding::Positional && (self.freq_shift > 1 || half <= self.freq_shift) {
            return Err(format!(
                "unet.freq_shift {} with {} channels in the first of unet.block_out_channels: expected 0 or 1, and less than half \
                 of the channels",
                self.freq_shift, c[0]
            ));
        }
        if self.downsample_padding > 1 {
            return Err(format!("unet.downsample_padding is {}; expected 0 or 1", self.downsample_padding));
        }
        if !(1..=32).contains(&self.layers_per_block) {
            return Err(format!("unet.layers_per_block is {}; expected 1 to 32", self.layers_per_block));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps <= 1.0) {
            return Err(format!("unet.norm_eps is {}; expected above 0 and at most 1", self.norm_eps));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(format!("unet.dropout is {}; expected from 0 up to, not including, 1", self.dropout));
        }
        if self.num_class_embeds == Some(0) || self.num_class_embeds.is_some_and(|n| n > 1 << 20) {
            return Err("unet.num_class_embeds: expected 1 to 1048576".into());
        }
        if self.time_dim() == 0 || self.time_dim() > 65_536 {
            return Err(format!("unet.time_embedding_dim is {}; expected 1 to 65536", self.time_dim()));
        }
        Ok(())
    }

    /// Reads a `config.json` of a `UNet2DModel`. Options that are missing have that class's defaults.
    ///
    /// # Errors
    /// An option that this program does not support or know, by name, with its value.
    pub fn from_diffusers(json: &Json) -> Result<DiffusersUnet, String> {
        if let Some(class) = json.get("_class_name").and_then(|c| c.as_str())
            && !matches!(class, "UNet2DModel" | "UNetUnconditionalModel")
        {
            return Err(format!("_class_name is `{class}`; expected UNet2DModel"));
        }
        let mut unet = library_defaults();
        let (mut size, mut inputs, mut outputs) = (None, 3, 3);
        for (name, value) in json {
            let bad = || format!("`{name}` is {value}, which this program does not support");
            let null = value.is_null();
            match name.as_str() {
                _ if name.starts_with('_') => {}
                "sample_size" if null => {}
                "sample_size" => size = Some(square(value).ok_or_else(bad)?),
                "in_channels" => inputs = whole(value).ok_or_else(bad)?,
                "out_channels" => outputs = whole(value).ok_or_else(bad)?,
                // Only `learned` time embeddings look at it, and they are refused.
                "num_train_timesteps" => {}
                "act_fn" if matches!(value.as_str(), Some("silu" | "swish")) => {}
                "mid_block_scale_factor" if value.as_f64() == Some(1.0) => {}
                "class_embed_type" if null => {}
                "mid_block_type" if null => unet.mid_block_type = MidBlock::None,
                "time_embedding_dim" if null => unet.time_embedding_dim = None,
                "attention_head_dim" if null => unet.attention_head_dim = None,
                "attn_norm_num_groups" if null => unet.attn_norm_num_groups = None,
                "num_class_embeds" if null => unet.num_class_embeds = None,
                "act_fn" | "mid_block_scale_factor" | "class_embed_type" => return Err(bad()),
                _ => unet.set(name, value.clone()).map_err(|why| {
                    if why.is_empty() { format!("unknown option `{name}`") } else { format!("{}: {why}", bad()) }
                })?,
            }
        }
        if inputs != outputs {
            return Err(format!("in_channels {inputs} and out_channels {outputs}: they must be equal"));
        }
        unet.validate()?;
        Ok(DiffusersUnet { unet, image_size: size, channels: inputs })
    }

    /// The `config.json` that `UNet2DModel` reads to the same network.
    pub fn to_diffusers(&self, image_size: usize, channels: usize) -> Json {
        let mut json = Json::new();
        let mut put = |name: &str, value: serde_json::Value| json.insert(name.into(), value);
        put("_class_name", "UNet2DModel".into());
        put("sample_size", image_size.into());
        put("in_channels", channels.into());
        put("out_channels", channels.into());
        put("act_fn", "silu".into());
        if let Ok(serde_json::Value::Object(own)) = serde_json::to_value(self) {
            json.extend(own);
        }
        for missing in ["attention_head_dim", "attn_norm_num_groups", "time_embedding_dim", "num_class_embeds"] {
            json.entry(missing).or_insert(serde_json::Value::Null);
        }
        if self.mid_block_type == MidBlock::None {
            json.insert("mid_block_type".into(), serde_json::Value::Null);
        }
        json
    }

    /// Sets one option.
    ///
    /// # Errors
    /// Why the value cannot be taken; empty where there is no such option.
    pub fn set(&mut self, name: &str, value: serde_json::Value) -> Result<(), String> {
        let Ok(serde_json::Value::Object(mut table)) = serde_json::to_value(&*self) else {
            return Err("the options cannot be written".into());
        };
        if !OPTIONS.contains(&name) {
            return Err(String::new());
        }
        table.insert(name.into(), value);
        *self = serde_json::from_value(serde_json::Value::Object(table)).map_err(|why| why.to_string())?;
        Ok(())
    }
}

/// Those that may be absent.
pub const OPTIONAL: &[&str] = &["attention_head_dim", "attn_norm_num_groups", "time_embedding_dim", "num_class_embeds"];

/// Every option of [`UnetConfig`].
pub const OPTIONS: &[&str] = &[
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "up_block_types",
    "mid_block_type",
    "add_attention",
    "attention_head_dim",
    "norm_num_groups",
    "attn_norm_num_groups",
    "norm_eps",
    "downsample_padding",
    "downsample_type",
    "upsample_type",
    "resnet_time_scale_shift",
    "center_input_sample",
    "time_embedding_type",
    "time_embedding_dim",
    "flip_sin_to_cos",
    "freq_shift",
    "dropout",
    "num_class_embeds",
];

/// What `UNet2DModel` takes where nothing is given.
fn library_defaults() -> UnetConfig {
    UnetConfig {
        block_out_channels: vec![224, 448, 672, 896],
        layers_per_block: 2,
        down_block_types: [&[DownBlock::DownBlock2D][..], &[DownBlock::AttnDownBlock2D; 3]].concat(),
        up_block_types: [&[UpBlock::AttnUpBlock2D; 3][..], &[UpBlock::UpBlock2D]].concat(),
        attention_head_dim: Some(8),
        norm_num_groups: 32,
        ..UnetConfig::default()
    }
}

fn whole(value: &serde_json::Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

/// A side, or two that are equal.
fn square(value: &serde_json::Value) -> Option<usize> {
    match value.as_array().map(Vec::as_slice) {
        Some([h, w]) if h == w => whole(h),
        Some(_) => None,
        None => whole(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DiffusersUnet, String> {
        UnetConfig::from_diffusers(serde_json::from_str::<serde_json::Value>(text).unwrap().as_object().unwrap())
    }

    #[test]
    fn a_config_travels_both_ways() {
        let text = r#"{"_class_name": "UNet2DModel", "_diffusers_version": "0.42.0", "sample_size": 32, "act_fn": "silu",
            "attention_head_dim": null, "block_out_channels": [128, 256, 256, 256], "downsample_padding": 0, "layers_per_block": 2,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"], "freq_shift": 1, "norm_eps": 1e-06,
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], "flip_sin_to_cos": false, "in_channels": 3,
            "mid_block_scale_factor": 1, "norm_num_groups": 32, "out_channels": 3, "time_embedding_type": "positional"}"#;
        let read = parse(text).unwrap();
        assert_eq!((read.image_size, read.channels, read.unet.downsample_padding), (Some(32), 3, 0));
        assert_eq!(read.unet.heads(256), (1, 256));
        let written = read.unet.to_diffusers(32, 3);
        assert_eq!(UnetConfig::from_diffusers(&written).unwrap(), read);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (text, name) in [
            (r#"{"down_block_types": ["SkipDownBlock2D"]}"#, "SkipDownBlock2D"),
            (r#"{"act_fn": "gelu"}"#, "act_fn"),
            (r#"{"class_embed_type": "timestep"}"#, "class_embed_type"),
            (r#"{"time_embedding_type": "learned"}"#, "learned"),
            (r#"{"mid_block_scale_factor": 1.414}"#, "mid_block_scale_factor"),
            (r#"{"cross_attention_dim": 768}"#, "cross_attention_dim"),
            (r#"{"_class_name": "UNet2DConditionModel"}"#, "UNet2DConditionModel"),
            (r#"{"norm_num_groups": 30}"#, "norm_num_groups 30"),
            (r#"{"in_channels": 6}"#, "out_channels"),
            (r#"{"sample_size": [32, 64]}"#, "sample_size"),
        ] {
            let refusal = parse(text).unwrap_err();
            assert!(refusal.contains(name), "{text}: {refusal}");
        }
    }
}
