//! By tiles of 16 rows of 16 lanes (AMX).
//!
//! Rust has no names for these instructions yet, so that they stand here as what they are: assembly. A left
//! factor's tile is `[depth / 32][height / 16][16 rows][16 pairs]`, so that each of the instruction's tiles lies
//! in one piece.

use std::arch::asm;
use std::sync::LazyLock;

use super::avx512::{block_of_columns, block_of_rows};
use super::{LINE, Numbers, Place, one_by_one};

/// Lanes of one of the instruction's tiles.
const BLOCK: usize = LINE * LINE;
/// What the system calls what this process asks it for, and for what (`asm/prctl.h` of Linux).
const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
/// The state of tiles (`XFEATURE_XTILEDATA`).
const TILES: libc::c_long = 18;

/// Whether the processor has tiles of bfloat16, and the system lets this process use them.
pub(super) fn is_there() -> bool {
    static IS_THERE: LazyLock<bool> = LazyLock::new(|| {
        let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
        let [bfloat16, tiles] = [22, 24].map(|bit| features >> bit & 1 == 1);
        // SAFETY: it asks for leave and changes nothing else; a system that does not know it says so.
        bfloat16
            && tiles
            && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILES) == 0 }
    });
    *IS_THERE
}

/// Gives this thread eight tiles of 16 rows of 64 bytes.
///
/// # Safety
///
/// They must be there.
pub(super) unsafe fn configure() {
    /// `palette_id`, `start_row`, 14 bytes of nothing, bytes of a row for 16 tiles, rows for 16 tiles.
    #[repr(C, align(64))]
    struct Configuration([u8; 64]);

    static CONFIGURATION: Configuration = {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let mut tile = 0;
        while tile < 8 {
            bytes[16 + 2 * tile] = 64;
            bytes[48 + tile] = LINE as u8;
            tile += 1;
        }
        Configuration(bytes)
    };
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "ldtilecfg [{}]", in(reg) CONFIGURATION.0.as_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly, preserves_flags),
        );
    }
}

/// Takes them from this thread, so that nobody has to put them away when it stops.
///
/// # Safety
///
/// As of [`configure`].
pub(super) unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilerelease",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem, preserves_flags),
        );
    }
}

/// As [`Instructions::lay_out_tile`](super::Instructions::lay_out_tile).
///
/// # Safety
///
/// As there.
pub(super) unsafe fn lay_out_tile(
    numbers: Numbers,
    [depth, others]: [usize; 2],
    height: usize,
    tile: &mut [u32],
) {
    let of_step = height * LINE;
    let step = |step: isize| usize::try_from(step).ok();
    let steps = numbers.steps.map(step);
    for (index, block) in tile.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
        let [from, row] = [
            index * BLOCK / of_step * 2 * LINE,
            index * BLOCK % of_step / LINE,
        ];
        let shape = [depth.saturating_sub(from), others.saturating_sub(row)];
        if shape.contains(&0) {
            block.fill(0);
            continue;
        }
        // SAFETY: the caller's promise: there are these numbers.
        unsafe {
            let numbers = numbers.from([from, row]);
            match steps {
                [Some(1), Some(step)] => block_of_rows(numbers.first, step, shape, block),
                [Some(step), Some(1)] => block_of_columns(numbers.first, step, shape, block),
                _ => {
                    let mut columns = [0; BLOCK];
                    one_by_one(numbers, shape, LINE, &mut columns);
                    for (at, lane) in block.iter_mut().enumerate() {
                        *lane = columns[at % LINE * LINE + at / LINE];
                    }
                }
            }
        }
    }
}

/// As [`Ready::multiply`](super::Ready::multiply).
///
/// # Safety
///
/// As there; this thread has its tiles.
pub(super) unsafe fn of_tile(tile: &[u32], height: usize, panel: &[u32], place: &Place) {
    /// All of a place.
    #[repr(C, align(64))]
    struct Sums([[f32; 2 * LINE]; 2 * LINE]);

    if place.rows == height && place.columns == 2 * LINE {
        // SAFETY: the caller's promise: there is all of the place.
        return unsafe {
            of_whole_tile(tile, height, panel, place.first, place.step, place.goes_on)
        };
    }
    let mut sums = Sums([[0.0; 2 * LINE]; 2 * LINE]);
    // SAFETY: the caller's promise.
    let row = |row: usize| unsafe {
        std::slice::from_raw_parts_mut(place.first.add(row * place.step), place.columns)
    };
    if place.goes_on {
        for (index, sums) in sums.0.iter_mut().enumerate().take(place.rows) {
            sums[..place.columns].copy_from_slice(row(index));
        }
    }
    let first = sums.0.as_mut_ptr().cast();
    // SAFETY: there is room for a whole tile, and both factors have as many pairs.
    unsafe { of_whole_tile(tile, height, panel, first, 2 * LINE, place.goes_on) };
    for (index, sums) in sums.0.iter().enumerate().take(place.rows) {
        row(index).copy_from_slice(&sums[..place.columns]);
    }
}

/// Writes `[height][32]` sums into rows that are `step` numbers apart.
///
/// # Safety
///
/// There must be room, and this thread must have its tiles.
unsafe fn of_whole_tile(
    tile: &[u32],
    height: usize,
    panel: &[u32],
    first: *mut f32,
    step: usize,
    goes_on: bool,
) {
    let steps = (tile.len() / (height * LINE)).min(panel.len() / (2 * BLOCK));
    if steps == 0 {
        return;
    }
    let step = step * size_of::<f32>();
    // SAFETY: both factors have these pairs, the place has these rows. Nothing else uses tiles meanwhile.
    unsafe {
        if height > LINE {
            asm!(
                "test {goes_on:l}, {goes_on:l}",
                "jnz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{upper} + {step}]",
                "tileloadd tmm1, [{upper} + {step} + 64]",
                "tileloadd tmm2, [{lower} + {step}]",
                "tileloadd tmm3, [{lower} + {step} + 64]",
                "3:",
                "tileloadd tmm6, [{panel} + {row}]",
                "tileloadd tmm4, [{tile} + {line}]",
                "tileloadd tmm7, [{panel} + {row} + 64]",
                "tileloadd tmm5, [{tile} + {line} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {tile}, 2048",
                "add {panel}, 2048",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{upper} + {step}], tmm0",
                "tilestored [{upper} + {step} + 64], tmm1",
                "tilestored [{lower} + {step}], tmm2",
                "tilestored [{lower} + {step} + 64], tmm3",
                tile = inout(reg) tile.as_ptr() => _,
                panel = inout(reg) panel.as_ptr() => _,
                steps = inout(reg) steps => _,
                upper = in(reg) first,
                lower = in(reg) first.byte_add(LINE * step),
                step = in(reg) step,
                line = in(reg) 64usize,
                row = in(reg) 128usize,
                goes_on = in(reg) usize::from(goes_on),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        } else {
            asm!(
                "test {goes_on:l}, {goes_on:l}",
                "jnz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{upper} + {step}]",
                "tileloadd tmm1, [{upper} + {step} + 64]",
                "3:",
                "tileloadd tmm4, [{tile} + {line}]",
                "tileloadd tmm6, [{panel} + {row}]",
                "tileloadd tmm7, [{panel} + {row} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {tile}, 1024",
                "add {panel}, 2048",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{upper} + {step}], tmm0",
                "tilestored [{upper} + {step} + 64], tmm1",
                tile = inout(reg) tile.as_ptr() => _,
                panel = inout(reg) panel.as_ptr() => _,
                steps = inout(reg) steps => _,
                upper = in(reg) first,
                step = in(reg) step,
                line = in(reg) 64usize,
                row = in(reg) 128usize,
                goes_on = in(reg) usize::from(goes_on),
                out("tmm0") _, out("tmm1") _,
                out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
