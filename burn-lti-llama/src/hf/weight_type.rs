//! [`WeightType`]: the float types of weights.

use std::fmt;

use burn::tensor::DType;
use half::{bf16, f16};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

/// The float types that weights are read, held and written in, under the names of `config.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WeightType {
    /// `float32`.
    #[default]
    #[serde(rename = "float32")]
    F32,
    /// `float16`: IEEE half precision, up to 65504.
    #[serde(rename = "float16")]
    F16,
    /// `bfloat16`: the upper half of float32, with its range and 8 bits of its precision.
    #[serde(rename = "bfloat16")]
    Bf16,
}

impl WeightType {
    pub(super) fn new(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// The name, as in `config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// Bytes of one number.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The type as Burn knows it.
    pub const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    pub(super) const fn in_file(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// Little-endian numbers of this type, each the nearest.
    pub(super) fn to_bytes(self, values: &[f32]) -> Vec<u8> {
        let values = values.iter().copied();
        match self {
            Self::F32 => values.flat_map(f32::to_le_bytes).collect(),
            Self::F16 => values
                .flat_map(|value| f16::from_f32(value).to_le_bytes())
                .collect(),
            Self::Bf16 => values
                .flat_map(|value| bf16::from_f32(value).to_le_bytes())
                .collect(),
        }
    }

    /// Little-endian numbers of this type as `f32`; each of the casts is exact.
    pub(super) fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => cast(bytes, f32::from_le_bytes),
            Self::F16 => cast(bytes, |number| f16::from_le_bytes(number).to_f32()),
            Self::Bf16 => cast(bytes, |number| bf16::from_le_bytes(number).to_f32()),
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn cast<const SIZE: usize>(bytes: &[u8], number: impl Fn([u8; SIZE]) -> f32) -> Vec<f32> {
    let (numbers, _) = bytes.as_chunks();
    numbers.iter().copied().map(number).collect()
}
