//! [`BlockType`]: how the numbers of a tensor lie in a GGUF file, as floats or as quantized blocks.
//!
//! The layouts are those of ggml's `ggml-common.h` and `ggml-quants.c` (version 3 of the format). A block of 32
//! numbers has one scale, one of 256 ("K") has scales of its own for each 16 or 32 of them. What is read is what
//! the Python package `gguf` makes of the same bytes, bit for bit.

use std::fmt;

use half::{bf16, f16};

/// Numbers of a block with scales of its own parts.
const K: usize = 256;

/// How the numbers of a tensor lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockType {
    /// `f32`
    F32,
    /// `f16`
    F16,
    /// `bf16`
    Bf16,
    /// 4 bits, a scale for 32.
    Q4_0,
    /// 4 bits, a scale and a least number for 32.
    Q4_1,
    /// 5 bits, a scale for 32.
    Q5_0,
    /// 5 bits, a scale and a least number for 32.
    Q5_1,
    /// 8 bits, a scale for 32.
    Q8_0,
    /// 2 bits, 256 in a block.
    Q2K,
    /// 3 bits, 256 in a block.
    Q3K,
    /// 4 bits, 256 in a block.
    Q4K,
    /// 5 bits, 256 in a block.
    Q5K,
    /// 6 bits, 256 in a block.
    Q6K,
}

impl BlockType {
    /// All that are read.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Those that are written.
    pub const WRITTEN: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0];

    /// Its name in ggml.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Its number in a file (`enum ggml_type`).
    pub(super) const fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// The type with this number, if it is read here.
    pub(super) fn of_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.id() == id)
    }

    /// What a file made of it says in `general.file_type` (`enum llama_ftype`).
    pub(crate) const fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
            _ => 0,
        }
    }

    /// Numbers of a block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => K,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// The numbers of whole blocks.
    pub(crate) fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        let blocks = bytes.chunks_exact(self.block_bytes());
        let mut numbers = Vec::with_capacity(blocks.len() * self.block_len());
        for block in blocks {
            match self {
                Self::F32 => {
                    numbers.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]]))
                }
                Self::F16 => numbers.push(half_at(block, 0)),
                Self::Bf16 => numbers.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
                Self::Q4_0 => nibbles(&mut numbers, half_at(block, 0), -8, None, None, &block[2..]),
                Self::Q4_1 => {
                    let least = Some(half_at(block, 2));
                    nibbles(&mut numbers, half_at(block, 0), 0, least, None, &block[4..]);
                }
                Self::Q5_0 => {
                    let fifth = Some([block[2], block[3], block[4], block[5]]);
                    nibbles(
                        &mut numbers,
                        half_at(block, 0),
                        -16,
                        None,
                        fifth,
                        &block[6..],
                    );
                }
                Self::Q5_1 => {
                    let (least, fifth) =
                        (half_at(block, 2), [block[4], block[5], block[6], block[7]]);
                    let scale = half_at(block, 0);
                    nibbles(
                        &mut numbers,
                        scale,
                        0,
                        Some(least),
                        Some(fifth),
                        &block[8..],
                    );
                }
                Self::Q8_0 => {
                    let scale = half_at(block, 0);
                    let signed = block[2..].iter().map(|byte| f32::from(byte.cast_signed()));
                    numbers.extend(signed.map(|number| scale * number));
                }
                Self::Q2K => q2_k(&mut numbers, block),
                Self::Q3K => q3_k(&mut numbers, block),
                Self::Q4K => q4_k(&mut numbers, block),
                Self::Q5K => q5_k(&mut numbers, block),
                Self::Q6K => q6_k(&mut numbers, block),
            }
        }
        numbers
    }

    /// Whole blocks of numbers; `None` for a type that is only read.
    pub(crate) fn to_bytes(self, numbers: &[f32]) -> Option<Vec<u8>> {
        let each = numbers.iter().copied();
        Some(match self {
            Self::F32 => each.flat_map(f32::to_le_bytes).collect(),
            Self::F16 => each
                .flat_map(|it| f16::from_f32(it).to_le_bytes())
                .collect(),
            Self::Bf16 => each
                .flat_map(|it| bf16::from_f32(it).to_le_bytes())
                .collect(),
            Self::Q8_0 => numbers.chunks_exact(32).flat_map(q8_0).collect(),
            _ => return None,
        })
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 numbers: the low halves of 16 bytes, then the high ones, with a fifth bit of each if there is one.
fn nibbles(
    numbers: &mut Vec<f32>,
    scale: f32,
    shift: i32,
    least: Option<f32>,
    fifth: Option<[u8; 4]>,
    bytes: &[u8],
) {
    let fifth = fifth.map_or(0, u32::from_le_bytes);
    for index in 0..32 {
        let byte = i32::from(bytes[index % 16] >> (index / 16 * 4) & 15);
        let number = byte | ((fifth >> index & 1) << 4) as i32;
        let scaled = scale * (number + shift) as f32;
        numbers.push(least.map_or(scaled, |least| scaled + least));
    }
}

fn q8_0(numbers: &[f32]) -> Vec<u8> {
    let largest = numbers
        .iter()
        .fold(0.0_f32, |most, number| most.max(number.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut bytes = f16::from_f32(scale).to_le_bytes().to_vec();
    // Halves are rounded away from zero, as in ggml.
    let rounded = numbers
        .iter()
        .map(|number| (number * inverse).round() as i8);
    bytes.extend(rounded.map(i8::cast_unsigned));
    bytes
}

/// 16 scales and least numbers of 4 bits, 64 bytes of 2 bits, the scale of both.
fn q2_k(numbers: &mut Vec<f32>, block: &[u8]) {
    let (scales, bits) = (&block[..16], &block[16..80]);
    let (scale, least) = (half_at(block, 80), half_at(block, 82));
    for index in 0..K {
        let (part, at) = (index / 128, index % 128);
        let own = scales[index / 16];
        let two = bits[part * 32 + at % 32] >> (at / 32 * 2) & 3;
        let by = scale * f32::from(own & 15);
        numbers.push(by * f32::from(two) - least * f32::from(own >> 4));
    }
}

/// A third bit of each number, 64 bytes of 2 bits, 16 scales of 6 bits in 12 bytes, their scale.
fn q3_k(numbers: &mut Vec<f32>, block: &[u8]) {
    let (third, bits, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half_at(block, 108);
    for index in 0..K {
        let (part, at, of) = (index / 128, index % 128, index / 16);
        let low = packed[of % 8] >> (of / 8 * 4) & 15;
        let high = packed[8 + of % 4] >> (of / 4 * 2) & 3;
        let own = f32::from((low | high << 4).cast_signed() - 32);
        let two = (bits[part * 32 + at % 32] >> (at / 32 * 2) & 3).cast_signed();
        let has_third = third[at % 32] >> (index / 32) & 1 == 1;
        let number = if has_third { two } else { two - 4 };
        numbers.push(scale * own * f32::from(number));
    }
}

/// The scale and the least number of the `of`-th 32, each of 6 bits, out of 12 bytes.
fn scale_and_least(packed: &[u8], of: usize) -> (f32, f32) {
    let (scale, least) = match of < 4 {
        true => (packed[of] & 63, packed[of + 4] & 63),
        false => (
            packed[of + 4] & 15 | packed[of - 4] >> 6 << 4,
            packed[of + 4] >> 4 | packed[of] >> 6 << 4,
        ),
    };
    (f32::from(scale), f32::from(least))
}

/// Both scales, 8 scales and least numbers, 128 bytes of 4 bits.
fn q4_k(numbers: &mut Vec<f32>, block: &[u8]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let (packed, bits) = (&block[4..16], &block[16..144]);
    for index in 0..K {
        let (own, own_least) = scale_and_least(packed, index / 32);
        let four = bits[index / 64 * 32 + index % 32] >> (index / 32 % 2 * 4) & 15;
        numbers.push(scale * own * f32::from(four) - least * own_least);
    }
}

/// As [`q4_k`], with a fifth bit of each number before the others.
fn q5_k(numbers: &mut Vec<f32>, block: &[u8]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let (packed, fifth, bits) = (&block[4..16], &block[16..48], &block[48..176]);
    for index in 0..K {
        let (own, own_least) = scale_and_least(packed, index / 32);
        let four = bits[index / 64 * 32 + index % 32] >> (index / 32 % 2 * 4) & 15;
        let five = four | (fifth[index % 32] >> (index / 32) & 1) << 4;
        numbers.push(scale * own * f32::from(five) - least * own_least);
    }
}

/// 128 bytes of 4 bits, 64 of 2 more, 16 scales of 8 bits, their scale.
fn q6_k(numbers: &mut Vec<f32>, block: &[u8]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for index in 0..K {
        let (part, at) = (index / 128, index % 128);
        let four = low[part * 64 + at % 64] >> (at / 64 * 4) & 15;
        let two = high[part * 32 + at % 32] >> (at / 32 * 2) & 3;
        let number = (four | two << 4).cast_signed() - 32;
        let own = f32::from(scales[index / 16].cast_signed());
        numbers.push(scale * own * f32::from(number));
    }
}
