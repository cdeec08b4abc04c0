//! Products in bfloat16: the factors are rounded to it, sums are float32.
//!
//! Processors that multiply bfloat16 multiply *pairs* of numbers: each lane of 32 bits has two neighbours along
//! the axis that is summed over. So that is how both factors are laid out, a right one in panels, a left one in
//! tiles of rows; what a tile looks like depends on the instructions:
//!
//! | file | [`Instructions`] | at a time |
//! |---|---|---|
//! | `amx` | `Tiles`: `tdpbf16ps` | 16 rows, 16 columns, 16 pairs |
//! | `avx512` | `Pairs`: `vdpbf16ps` | 16 columns, one pair |
//! | `widened` | `Float32`: none for pairs; the halves of a lane are widened and multiplied in turn | a vector |
//!
//! Every number of a product is one chain of sums in the order of that axis, of which an instruction takes as many
//! at a time as it does. It does not depend on which rows or columns are computed together, nor on how many
//! threads there are.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod speed;
#[cfg(test)]
mod tests;
mod widened;

use std::ops::Range;
use std::sync::LazyLock;

use super::matrix::Numbers;
use super::tile::panel_width;

/// Lanes of a line of memory, and of the widest vector.
const LINE: usize = 16;
/// Numbers along the axis that is summed over, of which pieces must have a multiple, but for the last one.
pub(crate) const WHOLE: usize = 2 * LINE;
/// Rows that are multiplied together, at most, where there are 32 registers of 16 lanes, and where there are 16.
const HEIGHTS: [usize; 2] = [14, 6];

/// By what factors in bfloat16 are multiplied. Each lays out factors for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instructions {
    /// Of tiles of 16 rows and 16 pairs (AMX).
    Tiles,
    /// Of vectors of 16 pairs (AVX-512 BF16).
    Pairs,
    /// Of vectors of float32.
    Float32,
}

impl Instructions {
    /// The fastest that this processor has.
    pub(crate) fn of_processor() -> Self {
        static BEST: LazyLock<Instructions> = LazyLock::new(|| {
            let best = Instructions::all().find(|it| it.are_there());
            best.unwrap_or(Instructions::Float32)
        });
        *BEST
    }

    /// The fastest first.
    fn all() -> impl Iterator<Item = Self> {
        [Self::Tiles, Self::Pairs, Self::Float32].into_iter()
    }

    /// Whether this processor, and the system for this process, have them.
    fn are_there(self) -> bool {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Tiles => Self::Pairs.are_there() && amx::is_there(),
            #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
            Self::Tiles => false,
            #[cfg(target_arch = "x86_64")]
            Self::Pairs => {
                panel_width() == 2 * LINE && std::arch::is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Pairs => false,
            Self::Float32 => true,
        }
    }

    /// As processors' makers call them. None for those that every processor has.
    pub(crate) const fn name(self) -> Option<&'static str> {
        match self {
            Self::Tiles => Some("AMX"),
            Self::Pairs => Some("AVX-512 BF16"),
            Self::Float32 => None,
        }
    }

    /// How many times as many multiply-adds they do as float32's in the same time, out of the first cache: measured
    /// once, within some milliseconds.
    pub(crate) fn beside_float32() -> f64 {
        static MEASURED: LazyLock<f64> =
            LazyLock::new(|| speed::beside_float32(Instructions::of_processor()));
        *MEASURED
    }

    /// Pairs that a panel or a tile has for so many numbers of the axis that is summed over.
    pub(crate) fn pairs_of(self, numbers: usize) -> usize {
        match self {
            Self::Tiles => numbers.div_ceil(WHOLE) * LINE,
            Self::Pairs | Self::Float32 => numbers.div_ceil(2),
        }
    }

    /// How a left factor of so many rows is cut into tiles of rows that are multiplied together: how high each
    /// is. The last may have rows of zeros.
    pub(crate) fn tile_height(self, rows: usize) -> usize {
        if self == Self::Tiles {
            return if rows <= LINE { LINE } else { 2 * LINE };
        }
        let tallest = HEIGHTS[usize::from(panel_width() < 2 * LINE)];
        let height = rows.div_ceil(rows.div_ceil(tallest).max(1));
        // One of those that there is a loop for.
        (height..=tallest)
            .find(|height| *height == 1 || height.is_multiple_of(2))
            .unwrap_or(1)
    }

    /// Lays out a panel of a right factor, `[pairs_of(depth)][panel_width()]` lanes, of `others` columns, at most
    /// as many as the panel is wide. Zeros beyond the last number.
    ///
    /// # Safety
    ///
    /// `numbers` must have `depth` rows and `others` columns.
    pub(crate) unsafe fn lay_out_panel(
        self,
        numbers: Numbers,
        shape: [usize; 2],
        panel: &mut [u32],
    ) {
        // SAFETY: the caller's promise.
        unsafe { self.lay_out(numbers, shape, panel_width(), panel) }
    }

    /// Lays out a tile of a left factor, `height * pairs_of(depth)` lanes, of `others` rows, at most as many as
    /// the tile is high. Zeros beyond the last number.
    ///
    /// # Safety
    ///
    /// `numbers`, the factor turned, must have `depth` rows and `others` columns.
    pub(crate) unsafe fn lay_out_tile(
        self,
        numbers: Numbers,
        shape: [usize; 2],
        height: usize,
        tile: &mut [u32],
    ) {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: the caller's promise; this processor has the instructions.
            Self::Tiles => unsafe { amx::lay_out_tile(numbers, shape, height, tile) },
            // SAFETY: as above.
            _ => unsafe { self.lay_out(numbers, shape, height, tile) },
        }
    }

    /// `[pairs][width]` lanes.
    ///
    /// # Safety
    ///
    /// As of [`lay_out_panel`](Self::lay_out_panel).
    unsafe fn lay_out(self, numbers: Numbers, shape: [usize; 2], width: usize, panel: &mut [u32]) {
        #[cfg(target_arch = "x86_64")]
        if self != Self::Float32 {
            let step = |step: isize| usize::try_from(step).ok();
            match numbers.steps.map(step) {
                [Some(step), Some(1)] => {
                    // SAFETY: the caller's promise; this processor has the instructions.
                    return unsafe {
                        avx512::side_by_side(numbers.first, step, shape, width, panel)
                    };
                }
                [Some(1), Some(step)] => {
                    // SAFETY: as above.
                    return unsafe { avx512::turned(numbers.first, step, shape, width, panel) };
                }
                _ => {}
            }
        }
        // SAFETY: the caller's promise.
        unsafe { one_by_one(numbers, shape, width, panel) }
    }

    /// What a thread needs to multiply.
    pub(crate) fn ready(self) -> Ready {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self == Self::Tiles {
            // SAFETY: this processor has tiles.
            unsafe { amx::configure() };
        }
        Ready(self)
    }
}

/// A thread that may multiply.
pub(crate) struct Ready(Instructions);

impl Ready {
    /// Multiplies a tile of a left factor, of which `height` is one that [`Instructions::tile_height`] gives,
    /// with a panel of a right one.
    ///
    /// # Safety
    ///
    /// There must be this place, and nobody else at it.
    pub(crate) unsafe fn multiply(
        &self,
        tile: &[u32],
        height: usize,
        panel: &[u32],
        place: &Place,
    ) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self.0 == Instructions::Tiles {
            // SAFETY: the caller's promise; this thread's tiles are configured.
            return unsafe { amx::of_tile(tile, height, panel, place) };
        }
        macro_rules! of_height {
            ($($height:literal)*) => {
                match height {
                    // SAFETY: the caller's promise.
                    $($height => unsafe { self.of_tile::<$height>(tile, panel, place) },)*
                    _ => unreachable!("no tile is so high"),
                }
            };
        }
        of_height!(1 2 4 6 8 10 12 14);
    }

    unsafe fn of_tile<const ROWS: usize>(&self, tile: &[u32], panel: &[u32], place: &Place) {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Instructions::Pairs {
            // SAFETY: the caller's promise; this processor has the instructions.
            return unsafe { avx512::of_tile::<ROWS>(tile, panel, place) };
        }
        // SAFETY: the caller's promise.
        unsafe { widened::of_tile::<ROWS>(tile, panel, place) }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self.0 == Instructions::Tiles {
            // SAFETY: this processor has tiles.
            unsafe { amx::release() };
        }
    }
}

/// Where a tile of a product is, `[rows, columns]`, and how far its rows are apart.
pub(crate) struct Place {
    pub(crate) first: *mut f32,
    pub(crate) step: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Whether it has the sum over what came before; else it is written over.
    pub(crate) goes_on: bool,
}

/// A line of memory, so that no vector lies in two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LINE]);

/// Factors that are laid out.
#[derive(Default)]
pub(crate) struct Pairs {
    lines: Vec<Line>,
    /// Lanes in use.
    lanes: usize,
}

impl Pairs {
    pub(crate) const fn new() -> Self {
        Self {
            lines: Vec::new(),
            lanes: 0,
        }
    }

    /// Room for so many lanes, whatever they hold.
    pub(crate) fn room(&mut self, lanes: usize) -> &mut [u32] {
        let lines = lanes.div_ceil(LINE);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; LINE]));
        }
        self.lanes = lanes;
        let first = self.lines.as_mut_ptr().cast();
        // SAFETY: there are these lines, and a line is as many lanes and nothing else.
        unsafe { std::slice::from_raw_parts_mut(first, lanes) }
    }

    pub(crate) fn lanes(&self) -> &[u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lanes) }
    }
}

/// The number of a row and a column of a panel, in float32.
pub(crate) fn laid_out(panel: &[u32], [row, column]: [usize; 2]) -> f32 {
    let lane = panel[row / 2 * panel_width() + column];
    f32::from_bits(match row % 2 {
        0 => lane << 16,
        _ => lane & 0xffff_0000,
    })
}

/// Panels of a right factor, or tiles of a left one, of so many columns or rows.
pub(crate) fn panels(others: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    (0..others)
        .step_by(width)
        .map(move |from| from..(from + width).min(others))
}

/// `[pairs][width]` lanes on any processor, wherever the numbers lie.
unsafe fn one_by_one(
    numbers: Numbers,
    [depth, others]: [usize; 2],
    width: usize,
    panel: &mut [u32],
) {
    for (pair, lanes) in panel.chunks_exact_mut(width).enumerate() {
        for (column, lane) in lanes.iter_mut().enumerate() {
            let bits = |row: usize| match row < depth && column < others {
                // SAFETY: the caller's promise, and there is this place.
                true => unsafe { bits(*numbers.from([row, column]).first) },
                false => 0,
            };
            *lane = bits(2 * pair) | bits(2 * pair + 1) << 16;
        }
    }
}

/// The nearest number of bfloat16, of two the even one, as the upper half of one of float32.
#[inline(always)]
fn bits(number: f32) -> u32 {
    let bits = number.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000; // what is no number stays none
    (if number.is_nan() { quiet } else { rounded }) >> 16
}
