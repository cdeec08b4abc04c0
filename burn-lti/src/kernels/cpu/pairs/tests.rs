//! All instructions of this processor, beside each other.

use super::*;

/// Numbers that are rounded, of both signs.
fn number(at: usize) -> f32 {
    (at * 7 % 11) as f32 * 1.01 - 5.0
}

fn of_this_processor() -> impl Iterator<Item = Instructions> {
    Instructions::all().filter(|it| it.are_there())
}

/// What `lay_out` writes, and nothing beyond.
fn written(lanes: usize, lay_out: impl FnOnce(&mut [u32])) -> Vec<u32> {
    let mut written = vec![7; lanes + 1];
    let (panel, beyond) = written.split_at_mut(lanes);
    lay_out(panel);
    assert_eq!(beyond, [7]);
    written
}

/// Rows side by side, columns side by side, and neither.
const STEPS: [[isize; 2]; 3] = [[70, 1], [1, 100], [2, 210]];

#[test]
fn panels_are_the_same_wherever_numbers_lie() {
    let numbers: Vec<f32> = (0..100 * 220).map(number).collect();
    let width = panel_width();
    for instructions in of_this_processor() {
        for [depth, others] in [[1, 1], [64, width], [67, width - 1], [33, 14 % width]] {
            for steps in STEPS {
                let numbers = Numbers {
                    first: numbers.as_ptr(),
                    steps,
                };
                let lanes = instructions.pairs_of(depth) * width;
                // SAFETY: there are so many rows and columns.
                let found = written(lanes, |panel| unsafe {
                    instructions.lay_out_panel(numbers, [depth, others], panel);
                });
                let expected = written(lanes, |panel| unsafe {
                    one_by_one(numbers, [depth, others], width, panel);
                });
                assert_eq!(
                    found, expected,
                    "{instructions:?} {depth} {others} {steps:?}"
                );
            }
        }
    }
}

#[test]
fn tiles_have_every_number_where_the_instructions_look_for_it() {
    let numbers: Vec<f32> = (0..100 * 220).map(number).collect();
    for instructions in of_this_processor() {
        for [depth, rows] in [[1, 1], [64, 32], [67, 31], [33, 14], [70, 3], [96, 17]] {
            for steps in STEPS {
                let turned = Numbers {
                    first: numbers.as_ptr(),
                    steps,
                };
                let height = instructions.tile_height(rows);
                let pairs = instructions.pairs_of(depth);
                let of_tile = rows.min(height);
                // SAFETY: there are so many rows and columns.
                let found = written(height * pairs, |tile| unsafe {
                    instructions.lay_out_tile(turned, [depth, of_tile], height, tile);
                });
                let mut expected = vec![7; height * pairs + 1];
                for (row, pair) in (0..height).flat_map(|row| (0..pairs).map(move |it| (row, it))) {
                    let bits = |at: usize| match at < depth && row < of_tile {
                        // SAFETY: as above.
                        true => unsafe { bits(*turned.from([at, row]).first) },
                        false => 0,
                    };
                    let place = match instructions {
                        Instructions::Tiles => {
                            let block = pair / LINE * (height / LINE) + row / LINE;
                            (block * LINE + row % LINE) * LINE + pair % LINE
                        }
                        _ => pair * height + row,
                    };
                    expected[place] = bits(2 * pair) | bits(2 * pair + 1) << 16;
                }
                assert_eq!(found, expected, "{instructions:?} {depth} {rows} {steps:?}");
            }
        }
    }
}

/// Whole numbers, whose sums are exact, so that all instructions have the same.
#[test]
fn all_instructions_have_the_same_sums() {
    const DEPTH: usize = 100;
    let whole: Vec<f32> = (0..DEPTH * 40).map(|at| number(at).trunc()).collect();
    let factor = |from: usize, steps| Numbers {
        first: whole[from..].as_ptr(),
        steps,
    };
    let width = panel_width();
    for instructions in of_this_processor() {
        for [rows, columns] in [
            [32, width],
            [17, width],
            [16, width],
            [5, 7],
            [1, 1],
            [2, 3],
        ] {
            let height = instructions.tile_height(rows);
            let rows = rows.min(height);
            let (turned, right) = (factor(3, [1, DEPTH as isize]), factor(0, [32, 1]));
            let pairs = instructions.pairs_of(DEPTH);
            let mut laid_out = [Pairs::new(), Pairs::new()];
            let [tile, panel] = &mut laid_out;
            // SAFETY: there are so many rows and columns.
            unsafe {
                instructions.lay_out_tile(turned, [DEPTH, rows], height, tile.room(height * pairs));
                instructions.lay_out_panel(right, [DEPTH, columns], panel.room(width * pairs));
            }
            for goes_on in [false, true] {
                let mut found = vec![2.0; rows * 40 + 40];
                let place = Place {
                    first: found.as_mut_ptr(),
                    step: 40,
                    rows,
                    columns,
                    goes_on,
                };
                // SAFETY: there is this place.
                unsafe {
                    let ready = instructions.ready();
                    ready.multiply(tile.lanes(), height, panel.lanes(), &place);
                }
                for (at, found) in found.into_iter().enumerate() {
                    let [row, column] = [at / 40, at % 40];
                    let sum: f32 = (0..DEPTH)
                        .map(|i| whole[3 + row * DEPTH + i] * whole[i * 32 + column])
                        .sum();
                    let expected = match row < rows && column < columns {
                        true => sum + if goes_on { 2.0 } else { 0.0 },
                        false => 2.0,
                    };
                    assert_eq!(
                        found, expected,
                        "{instructions:?} {rows} {columns} {goes_on}"
                    );
                }
            }
        }
    }
}

/// None is a hundred times as fast as another: a measurement that is broken would be.
#[test]
fn speeds_are_measured() {
    for instructions in of_this_processor() {
        let times = speed::beside_float32(instructions);
        println!("{instructions:?} {times}");
        assert!((0.01..100.0).contains(&times), "{instructions:?} {times}");
    }
}
