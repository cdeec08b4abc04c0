//! Which rotary pairs of a teacher's head those of a student's of another size stand for.

/// For each of `size` rotary pairs the one of `of` pairs that turns at the same frequency, or at the nearest: pair
/// `i` of `size` turns by `theta^(-i / size)`, so that the pair `i * of / size` is the same. No pair is used twice;
/// `None` where none is left, among more pairs.
pub fn own_pairs(of: usize, size: usize) -> Vec<Option<usize>> {
    let mut pairs = vec![None; size];
    if size <= of {
        for (pair, own) in pairs.iter_mut().enumerate() {
            // To the nearest: a step from pair to pair is at least one, so none comes twice.
            *own = Some((2 * pair * of + size) / (2 * size));
        }
    } else {
        for own in 0..of {
            pairs[(2 * own * size + of) / (2 * of)] = Some(own);
        }
    }
    pairs
}

/// The same, and where none is left the pair that turns at the nearest frequency once more.
pub fn nearest_pairs(of: usize, size: usize) -> Vec<usize> {
    let own = own_pairs(of, size).into_iter().enumerate();
    own.map(|(pair, own)| {
        let nearest = (2 * pair * of + size) / (2 * size.max(1));
        own.unwrap_or(nearest.min(of.saturating_sub(1)))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_heads_keep_their_pairs_and_half_a_head_every_other() {
        assert_eq!(own_pairs(4, 4), [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!(own_pairs(4, 2), [Some(0), Some(2)]);
        assert_eq!(own_pairs(2, 4), [Some(0), None, Some(1), None]);
        assert_eq!(nearest_pairs(2, 4), [0, 1, 1, 1]);
        assert!(nearest_pairs(0, 0).is_empty());
    }

    #[test]
    fn no_pair_is_used_twice_and_each_has_a_nearest() {
        for of in 1..=32 {
            for size in 1..=32 {
                let own = own_pairs(of, size);
                let mut used: Vec<usize> = own.iter().flatten().copied().collect();
                assert_eq!(used.len(), of.min(size));
                used.dedup();
                assert_eq!(used.len(), of.min(size), "{of} {size}");
                assert!(used.is_sorted());
                let nearest = nearest_pairs(of, size);
                for (own, nearest) in own.iter().zip(&nearest) {
                    assert!(*nearest < of && own.is_none_or(|own| own == *nearest));
                }
            }
        }
    }
}
