//! The last projection of a feed-forward block, fitted to what is missing after the attention.

use burn::prelude::*;
use burn::tensor::TensorData;
use faer::Mat;

use super::error::Result;
use super::features::flat;
use super::map_values::row_major;
use super::solve;
use super::split::SplitMoments;
use super::teacher::{TeacherTensors, site_name};
use super::text::Text;
use crate::decoder::LayeredDecoder;
use crate::geometry::Role;
use crate::tensors::{TensorSet, join_name};

/// Ridges to choose from.
pub(super) const RIDGES: [f64; 6] = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];

/// What the fit leaves of what was missing, on held-out tokens, and the new weight of `layer`. Where none
/// helps, nothing is changed.
pub(super) fn refit<B: Backend>(
    text: &mut Text<'_, B, impl LayeredDecoder<B>>,
    layer: usize,
    student: &impl LayeredDecoder<B>,
) -> Result<(f64, TensorSet<B>)> {
    let name = site_name(text.teacher, layer, Role::Down)?;
    let weight = TeacherTensors(TensorSet::collect(student)).weight(&name, text.d_model)?;
    let mut sums = SplitMoments::zeros(weight.nrows(), text.d_model);
    for (index, batch) in text.batches() {
        let block = |attended| student.feed_forward(layer, attended);
        let (attended, missing) = text.missing(index, layer, &batch, student, block)?;
        let features = flat(student.feed_forward_features(layer, attended));
        let targets = text.targets(index, layer, &batch)?;
        let nothing = missing.zeros_like();
        sums.add(
            index,
            targets.weigh(features),
            targets.weigh(missing),
            nothing,
        )?;
    }
    let (residual, change) = change(&sums)?;
    let mut changed = TensorSet::new();
    if let Some(change) = change {
        let weight = weight + change;
        let data = TensorData::new(row_major(&weight), [weight.nrows(), weight.ncols()]);
        let head = text.teacher.head().weight;
        let tensor = Tensor::<B, 2>::from_data(data, (&head.device(), head.dtype()));
        changed.insert(&join_name(&name, "weight"), "Linear", tensor);
    }
    Ok((residual, changed))
}

/// What is best added to the weight, and what that leaves on held-out tokens. What does not help there is
/// left alone.
pub(super) fn change(sums: &SplitMoments) -> Result<(f64, Option<Mat<f64>>)> {
    let best = RIDGES
        .into_iter()
        // A ridge too little for the rounding of the sums is passed over.
        .filter_map(|ridge| {
            let fitted = &sums.fitted;
            let change = solve::ridge(&fitted.gram, &fitted.cross(1.0), ridge).ok()?;
            Some((sums.held_out.residual(&change), ridge))
        })
        .min_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((residual, ridge)) if residual < 1.0 => {
            let all = sums.all();
            let change = solve::ridge(&all.gram, &all.cross(1.0), ridge)?;
            Ok((residual, Some(change)))
        }
        _ => Ok((1.0, None)),
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::Distribution;

    use super::*;

    /// Eight batches of features, what is missing `sign` times them: in those held out with the other sign
    /// if they `disagree`.
    fn sums(disagree: bool) -> SplitMoments {
        let device = Default::default();
        let mut sums = SplitMoments::zeros(3, 3);
        for batch in 0..8 {
            let random = Distribution::Normal(0.0, 1.0);
            let features = Tensor::<Flex, 2>::random([30, 3], random, &device);
            let sign = if disagree && batch % 4 == 3 {
                -1.0
            } else {
                1.0
            };
            let missing = features.clone() * sign;
            let nothing = missing.zeros_like();
            sums.add(batch, features, missing, nothing).unwrap();
        }
        sums
    }

    #[test]
    fn what_held_out_tokens_bear_out_is_added_and_nothing_else() {
        let (residual, found) = change(&sums(false)).unwrap();
        let found = found.expect("it helps");
        assert!(residual < 1e-6);
        assert!((found - Mat::<f64>::identity(3, 3)).norm_l2() < 1e-3);
        let (residual, found) = change(&sums(true)).unwrap();
        assert!(residual == 1.0 && found.is_none());
    }
}
