//! How a layer's maps are kept as tensors: the only file of this folder that knows their names and shapes.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::error::Result;
use super::map_values::{MapValues, row_major};
use super::pairs::{Pairs, outer_product};
use crate::decoder::LtiSpec;
use crate::geometry::{Axes, Axis, Role, Site};
use crate::map::{AxisSpec, MapKind, Side, fill_up};
use crate::tensors::{TensorSet, join_name, split_name};

/// Whether a tensor holds values of the map of one of these projections.
pub(super) fn is_map_of(projections: &[String], name: &str) -> bool {
    let (map, leaf) = split_name(name);
    let (module, _) = split_name(map);
    matches!(leaf, "a" | "b" | "w") && projections.iter().any(|projection| projection == module)
}

/// The maps of a student.
#[derive(Debug)]
pub(super) struct MapTensors<'a, B: Backend> {
    pub(super) spec: &'a LtiSpec,
    pub(super) student: &'a Axes,
    pub(super) device: B::Device,
}

impl<B: Backend> MapTensors<'_, B> {
    /// Tensors of zeros for a map of `projection`.
    pub(super) fn add_placeholder(
        &self,
        tensors: &mut TensorSet<B>,
        role: Role,
        projection: &str,
    ) -> Result<()> {
        let spec = self.map_spec(role);
        let map = &map_name(projection, role);
        spec.check_rank()?;
        match self.form(role) {
            MapKind::General => self.add(tensors, map, "w", None, spec.w_shape()),
            MapKind::Factored | MapKind::Kronecker(_) => {
                self.add(tensors, map, "a", None, spec.a_shape());
                self.add(tensors, map, "b", None, spec.b_shape());
            }
        }
        Ok(())
    }

    /// The form in which values are fitted: as many pairs as there can be make every general map, and are
    /// taken out of that in the end.
    pub(super) fn fitted_form(&self, role: Role) -> MapKind {
        let spec = self.map_spec(role);
        match self.form(role) {
            MapKind::Kronecker(1) => MapKind::Factored,
            MapKind::Kronecker(rank)
                if rank == MapKind::largest_rank(spec.teacher, spec.student) =>
            {
                MapKind::General
            }
            map => map,
        }
    }

    /// Adds the tensors of `values` in the map's own form, which can express them. Pairs that the map has
    /// beyond them add nothing yet.
    pub(super) fn add_map(
        &self,
        tensors: &mut TensorSet<B>,
        site: Site,
        projection: &str,
        values: &MapValues,
    ) -> Result<()> {
        let spec = self.map_spec(site.role);
        let map = &map_name(projection, site.role);
        let (mut a, mut b) = match (values, self.form(site.role).pairs()) {
            (MapValues::General(w), None) => {
                self.add(tensors, map, "w", Some(row_major(w)), spec.w_shape());
                return Ok(());
            }
            (MapValues::Factored { a, b }, None) => {
                let w = row_major(&outer_product(a, b));
                self.add(tensors, map, "w", Some(w), spec.w_shape());
                return Ok(());
            }
            (MapValues::General(w), Some(rank)) => {
                let head_sizes = [spec.teacher.head_dim, spec.student.head_dim];
                stacked(&Pairs::nearest(w, head_sizes, rank)?)
            }
            (MapValues::Factored { a, b }, Some(_)) => (row_major(a), row_major(b)),
            (MapValues::Pairs(pairs), _) => stacked(pairs),
        };
        let seed = site.seed(self.spec.seed);
        fill_up(&spec, &mut a, &mut b, &mut StdRng::seed_from_u64(seed));
        self.add(tensors, map, "a", Some(a), spec.a_shape());
        self.add(tensors, map, "b", Some(b), spec.b_shape());
        Ok(())
    }

    /// The map along the heads of the projection in `role`.
    fn map_spec(&self, role: Role) -> AxisSpec {
        let (teacher, student) = (self.spec.teacher.grid(role), self.student.grid(role));
        AxisSpec::mapped(self.form(role), teacher, student)
    }

    fn form(&self, role: Role) -> MapKind {
        self.spec.maps.get(role).unwrap_or_default()
    }

    /// Adds one tensor of a map; zeros where there are no values.
    fn add(
        &self,
        tensors: &mut TensorSet<B>,
        map: &str,
        leaf: &str,
        values: Option<Vec<f32>>,
        shape: [usize; 2],
    ) {
        let on = (&self.device, DType::F32);
        let tensor = match values {
            Some(values) => Tensor::<B, 2>::from_data(TensorData::new(values, shape), on),
            None => Tensor::zeros(shape, on),
        };
        tensors.insert(&join_name(map, leaf), "AxisMap", tensor);
    }
}

/// The name of the map along the heads of the projection in `role`.
fn map_name(projection: &str, role: Role) -> String {
    let side = match role.axes() {
        [Axis::Width, _] => Side::Right,
        [_, _] => Side::Left,
    };
    join_name(projection, side.name())
}

/// `A` and `B` of all pairs, one below the other and row-major.
fn stacked(pairs: &Pairs) -> (Vec<f32>, Vec<f32>) {
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    for [a, b] in pairs.factors() {
        of_a.extend(row_major(&a));
        of_b.extend(row_major(&b));
    }
    (of_a, of_b)
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use faer::Mat;

    use super::*;
    use crate::decoder::RoleMaps;
    use crate::geometry::HeadGrid;

    /// What a map of this form, from 4 heads of 2 features to 2 of 2, has for tensors.
    fn tensors(map: MapKind, values: &MapValues) -> TensorSet<Flex> {
        let axes = |heads| {
            let grid = HeadGrid::new(heads, 2);
            Axes::of_attention(8, grid, grid)
        };
        let spec = LtiSpec {
            maps: RoleMaps::attention(map),
            ..LtiSpec::new(axes(4))
        };
        let maps = MapTensors {
            spec: &spec,
            student: &axes(2),
            device: Default::default(),
        };
        let (mut placeholder, mut tensors) = (TensorSet::new(), TensorSet::new());
        maps.add_placeholder(&mut placeholder, Role::Value, "v")
            .unwrap();
        let site = Site::new(0, Role::Value);
        maps.add_map(&mut tensors, site, "v", values).unwrap();
        let shapes = |set: &TensorSet<Flex>| -> Vec<(String, Vec<usize>)> {
            set.iter()
                .map(|(name, named)| (name.to_owned(), named.tensor.shape()))
                .collect()
        };
        assert_eq!(shapes(&placeholder), shapes(&tensors));
        assert!(
            tensors
                .names()
                .all(|name| is_map_of(&["v".to_owned()], name))
        );
        tensors
    }

    #[test]
    fn a_map_is_the_same_in_each_form_that_can_express_it() {
        let a = Mat::from_fn(4, 2, |i, j| (i * 2 + j) as f64);
        let b = Mat::from_fn(2, 2, |i, j| (i + 3 * j) as f64 + 1.0);
        let general = MapValues::General(outer_product(&a, &b));
        let factored = MapValues::Factored { a, b };
        let value = |set: &TensorSet<Flex>, leaf| set.get(leaf).unwrap().tensor.to_f32().unwrap();
        let w = |values| value(&tensors(MapKind::General, values), "v.right.w");
        assert_eq!(w(&general), w(&factored));
        let of_pairs = |map, values| {
            let set = tensors(map, values);
            let (a, b) = (value(&set, "v.right.a"), value(&set, "v.right.b"));
            outer_product(
                &Mat::from_fn(4, 2, |i, j| f64::from(a[i * 2 + j])),
                &Mat::from_fn(2, 2, |i, j| f64::from(b[i * 2 + j])),
            )
        };
        let exact = of_pairs(MapKind::Factored, &factored);
        for (map, values) in [
            (MapKind::Factored, &general),
            (MapKind::Kronecker(2), &general),
        ] {
            // Factors in float32.
            assert!((of_pairs(map, values) - &exact).norm_l2() < 1e-6 * exact.norm_l2());
        }
        let two = tensors(MapKind::Kronecker(2), &factored);
        assert!(
            value(&two, "v.right.b")[4..]
                .iter()
                .all(|value| *value == 0.0)
        );
        assert!(
            value(&two, "v.right.a")[8..]
                .iter()
                .all(|value| *value != 0.0)
        );
    }
}
