//! How a layer's maps are kept as tensors: the only file of this folder that knows their names and shapes.

use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use faer::Mat;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::error::{CalibrationError, Result};
use super::map_values::{MapValues, row_major};
use super::pairs::{Pairs, outer_product};
use crate::decoder::LtiSpec;
use crate::geometry::{Axes, Axis, Role, Site};
use crate::map::{AxisSpec, MapKind, RotaryShape, Side, fill_up};
use crate::tensors::{TensorSet, join_name, split_name};

/// Whether a tensor holds values of the map of one of these projections.
pub(super) fn is_map_of(projections: &[String], name: &str) -> bool {
    let (map, leaf) = split_name(name);
    let (module, _) = split_name(map);
    matches!(leaf, "a" | "b" | "w" | "r")
        && projections.iter().any(|projection| projection == module)
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
        site: Site,
        projection: &str,
    ) -> Result<()> {
        let spec = self.map_spec(site);
        let map = &map_name(projection, site.role);
        spec.check_form()?;
        match self.form(site) {
            MapKind::General => self.add(tensors, map, "w", None, spec.w_shape()),
            MapKind::Rotary { .. } => {
                self.add(tensors, map, "r", None, spec.r_shape());
                if let Some(shape) = spec.still_shape() {
                    self.add(tensors, map, "w", None, shape);
                }
            }
            MapKind::Factored | MapKind::Kronecker(_) => {
                self.add(tensors, map, "a", None, spec.a_shape());
                self.add(tensors, map, "b", None, spec.b_shape());
            }
        }
        Ok(())
    }

    /// The form in which values are fitted: as many pairs as there can be make every general map, and are
    /// taken out of that in the end, as is a rotary map.
    pub(super) fn fitted_form(&self, site: Site) -> MapKind {
        let spec = self.map_spec(site);
        match self.form(site) {
            MapKind::Rotary { .. } => MapKind::General,
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
        let spec = self.map_spec(site);
        let map = &map_name(projection, site.role);
        if let Some(shape) = spec.rotary() {
            return self.add_rotary(tensors, projection, site, &shape, values);
        }
        let (mut a, mut b) = match (values, self.form(site).pairs()) {
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

    /// Adds a map that commutes with the rotary embedding. Every start is one, unless a decoder pairs features in
    /// another way than such a map does.
    fn add_rotary(
        &self,
        tensors: &mut TensorSet<B>,
        projection: &str,
        site: Site,
        shape: &RotaryShape,
        values: &MapValues,
    ) -> Result<()> {
        let w = match values {
            MapValues::General(w) => w.clone(),
            MapValues::Factored { a, b } => outer_product(a, b),
            MapValues::Pairs(pairs) => pairs.sum(),
        };
        let Commuting { r, still, lost } = commuting(shape, &w);
        if lost > ROUNDING {
            return Err(CalibrationError::Refused(format!(
                "the start of {projection} mixes features that a rotary map keeps apart, {lost:.2e} of it: such a map \
                 is of query and key, and pairs feature p of a head with p + head_dim / 2, as \
                 `LayeredDecoder::rotary_pairs` and `query_key_features` have to; give {projection} a general map"
            )));
        }
        let spec = self.map_spec(site);
        let map = &map_name(projection, site.role);
        self.add(tensors, map, "r", Some(r), spec.r_shape());
        if let Some(shape) = spec.still_shape() {
            self.add(tensors, map, "w", Some(row_major(&still)), shape);
        }
        Ok(())
    }

    /// The map along the heads of the projection at `site`.
    pub(super) fn map_spec(&self, site: Site) -> AxisSpec {
        let role = site.role;
        let (teacher, student) = (self.spec.teacher.grid(role), self.student.grid(role));
        AxisSpec::mapped(self.form(site), teacher, student)
    }

    fn form(&self, site: Site) -> MapKind {
        self.spec.maps.at(site).unwrap_or_default()
    }

    /// Adds one tensor of a map; zeros where there are no values.
    fn add<const D: usize>(
        &self,
        tensors: &mut TensorSet<B>,
        map: &str,
        leaf: &str,
        values: Option<Vec<f32>>,
        shape: [usize; D],
    ) {
        let on = (&self.device, DType::F32);
        let tensor = match values {
            Some(values) => Tensor::<B, D>::from_data(TensorData::new(values, shape), on),
            None => Tensor::zeros(shape, on),
        };
        tensors.insert(&join_name(map, leaf), "AxisMap", tensor);
    }
}

/// What of a start's size may be lost to rounding where it is made a rotary map.
const ROUNDING: f64 = 1e-6;

/// What of a map commutes with a rotary embedding.
struct Commuting {
    /// `[s_pairs, 2 * t_heads, s_heads]`
    r: Vec<f32>,
    /// Over what does not turn.
    still: Mat<f64>,
    /// The size of the rest, as a part of the map's.
    lost: f64,
}

/// The rotary map nearest to `w [t_heads * t_head_dim, s_heads * s_head_dim]`.
fn commuting(shape: &RotaryShape, w: &Mat<f64>) -> Commuting {
    let ([t_heads, s_heads], [t_size, s_size]) = (shape.heads, shape.sizes);
    let at = |head: usize, feature: usize, s_head: usize, s_feature: usize| {
        (head * t_size + feature, s_head * s_size + s_feature)
    };
    let mut rest = w.clone();
    let mut r = Vec::new();
    for (pair, [re, im]) in shape.sources().into_iter().enumerate() {
        let mut imaginary = Vec::new();
        for head in 0..t_heads {
            for s_head in 0..s_heads {
                let places = [
                    (re, pair),
                    (im, pair),
                    (re, pair + s_size / 2),
                    (im, pair + s_size / 2),
                ];
                let [re_re, im_re, re_im, im_im] =
                    places.map(|(feature, s_feature)| at(head, feature, s_head, s_feature));
                let a = (w[re_re] + w[im_im]) / 2.0;
                let b = (w[re_im] - w[im_re]) / 2.0;
                r.push(a as f32);
                imaginary.push(b as f32);
                rest[re_re] -= a;
                rest[im_im] -= a;
                rest[re_im] -= b;
                rest[im_re] += b;
            }
        }
        r.extend(imaginary);
    }
    let [of, to] = [shape.still(0), shape.still(1)];
    let still = Mat::from_fn(t_heads * of.len(), s_heads * to.len(), |row, column| {
        let place = at(
            row / of.len(),
            of[row % of.len()],
            column / to.len(),
            to[column % to.len()],
        );
        std::mem::take(&mut rest[place])
    });
    let lost = rest.norm_l2() / w.norm_l2().max(f64::MIN_POSITIVE);
    Commuting { r, still, lost }
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
        let site = Site::new(0, Role::Value);
        maps.add_placeholder(&mut placeholder, site, "v").unwrap();
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
    fn a_map_that_commutes_is_taken_apart_whole_and_another_is_refused_with_what_is_lost() {
        let rotary = MapKind::Rotary {
            teacher: 1,
            student: 1,
        };
        // Heads of one pair: the first of the student's is (1 + 2i) times the first and (0.5 - i) times the third.
        let mut w = Mat::<f64>::zeros(8, 4);
        for (head, a, b) in [(0, 1.0, 2.0), (2, 0.5, -1.0)] {
            (w[(2 * head, 0)], w[(2 * head + 1, 1)]) = (a, a);
            (w[(2 * head, 1)], w[(2 * head + 1, 0)]) = (b, -b);
        }
        let set = tensors(rotary, &MapValues::General(w.clone()));
        let r = set.get("v.right.r").unwrap().tensor.to_f32().unwrap();
        let expected = [
            [1.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0],
            [2.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0],
        ];
        assert_eq!(r, expected.concat());
        w[(0, 0)] += 0.1;
        let shape = RotaryShape {
            heads: [4, 2],
            sizes: [2, 2],
            pairs: [1, 1],
        };
        // A half of what was added is of the nearest map, the other is lost, in two places.
        let lost = commuting(&shape, &w).lost * w.norm_l2();
        assert!((lost - 0.1 / 2.0_f64.sqrt()).abs() < 1e-12, "{lost}");
        let axes = |heads| {
            let grid = HeadGrid::new(heads, 2);
            Axes::of_attention(8, grid, grid)
        };
        let spec = LtiSpec {
            maps: RoleMaps::attention(rotary),
            ..LtiSpec::new(axes(4))
        };
        let maps = MapTensors::<Flex> {
            spec: &spec,
            student: &axes(2),
            device: Default::default(),
        };
        let site = Site::new(0, Role::Query);
        let refused = maps.add_map(&mut TensorSet::new(), site, "q", &MapValues::General(w));
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("the start of q mixes features"), "{error}");
        assert!(error.contains("general map"), "{error}");
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
