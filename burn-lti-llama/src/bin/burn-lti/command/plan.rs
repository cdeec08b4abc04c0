//! `burn-lti plan`

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Distribution, Tensor};
use burn_lti_llama::distill::{self, Shape, ShapeTable, search_shape};
use burn_lti_llama::plan::DeviceSpeed;
use burn_lti_llama::recipe::Recipe;

use crate::args::{BackendArgs, PlanArgs};
use crate::backend::{BackendName, on_backend};
use crate::progress;
use crate::signals::interrupted_by_signals;
use crate::streams::{say, say_on};

/// How a search that was interrupted before it began is made after all.
const WAY_ON: &str = "the same command makes it again";

pub(crate) fn run(args: &PlanArgs) -> Result<()> {
    let recipe = args.recipe.load()?;
    if let Some(backend) = args.shapes {
        return search(args, &recipe, backend);
    }
    if recipe.student.target.is_some() {
        return print_shapes(args, &distill::shapes(&recipe)?);
    }
    let plan = match args.config_only {
        true => distill::plan_of_config(&recipe)?,
        false => distill::plan(&recipe)?,
    };
    let accepted = plan.teacher.source.accepted();
    let given = args.flops.map(|flops| DeviceSpeed {
        flops,
        bandwidth: args.bandwidth,
    });
    let measured = args.measure.map(measured_on).transpose()?;
    let prediction = given.or(measured).map(|speed| plan.costs.predict(speed));
    if args.json.json {
        let mut json = serde_json::to_value(&plan)?;
        if let Some(prediction) = prediction {
            json["prediction"] = serde_json::to_value(prediction)?;
        }
        if !accepted.is_empty() {
            json["accepted"] = accepted.into();
        }
        say!("{}", serde_json::to_string_pretty(&json)?);
    } else {
        say_on!("{plan}");
        if let Some(prediction) = prediction {
            say_on!("\n{prediction}");
        }
        if !accepted.is_empty() {
            say!(
                "\nnot known here and accepted at your risk, though it may change what the teacher computes: {}",
                accepted.join(", ")
            );
        }
        let read_over = plan.teacher.source.read_over();
        if args.verbose && !read_over.is_empty() {
            say!("\nread over in config.json: {}", read_over.join(", "));
        }
    }
    Ok(())
}

/// Searches a shape, and prints those that were tried.
fn search(args: &PlanArgs, recipe: &Recipe, backend: BackendName) -> Result<()> {
    let backend = BackendArgs {
        backend,
        device: None,
    };
    let (found, shapes) = on_backend!(backend, searched(recipe))?;
    print_shapes(args, &shapes)?;
    if !args.json.json {
        let student = toml::to_string(&found.student)?;
        let student = student.trim_end();
        say!("\nthe first of them, for a recipe:\n\n[student]\n{student}");
    }
    Ok(())
}

fn searched<A: AutodiffBackend>(
    device: &A::Device,
    recipe: &Recipe,
) -> Result<(Recipe, Vec<Shape>)> {
    let interrupt = interrupted_by_signals(WAY_ON)?;
    Ok(search_shape::<A>(
        recipe,
        device,
        &progress::listener(),
        &interrupt,
    )?)
}

fn print_shapes(args: &PlanArgs, shapes: &[Shape]) -> Result<()> {
    match args.json.json {
        true => say!("{}", serde_json::to_string_pretty(shapes)?),
        false => say_on!("{}", ShapeTable(shapes)),
    }
    Ok(())
}

fn measured_on(backend: BackendName) -> Result<DeviceSpeed> {
    let args = BackendArgs {
        backend,
        device: None,
    };
    on_backend!(args, measured())
}

/// The speed of the fastest of some products and of a sum of tensors that no cache holds.
fn measured<A: AutodiffBackend>(device: &A::Device) -> Result<DeviceSpeed> {
    /// Rows, inner features and columns. At a power of two, rows fall on the same sets of a cache, and a
    /// library may be slower than at what models have.
    const PRODUCTS: [[usize; 3]; 3] = [[2048, 2048, 2048], [1920, 1920, 1920], [512, 576, 4608]];
    /// A tensor just below what the allocator maps anew each time.
    const ELEMENTS: usize = 7 << 20;
    let random = |rows, columns| {
        let normal = Distribution::Normal(0.0, 1.0);
        Tensor::<A::InnerBackend, 2>::random([rows, columns], normal, device)
    };
    let mut flops = 0.0f64;
    for [rows, inner, columns] in PRODUCTS {
        let (a, b) = (random(rows, inner), random(inner, columns));
        let seconds = best::<A::InnerBackend, _>(device, || a.clone().matmul(b.clone()))?;
        flops = flops.max(2.0 * (rows * inner * columns) as f64 / seconds);
    }
    let (a, b) = (random(1, ELEMENTS), random(1, ELEMENTS));
    let sum = best::<A::InnerBackend, _>(device, || a.clone() + b.clone())?;
    let transferred = 3 * ELEMENTS * size_of::<f32>();
    Ok(DeviceSpeed {
        flops,
        bandwidth: Some(transferred as f64 / sum),
    })
}

/// Seconds of the fastest of some repetitions.
fn best<B: Backend, T>(device: &B::Device, mut compute: impl FnMut() -> T) -> Result<f64> {
    const AT_LEAST: usize = 4;
    const LONG_ENOUGH: Duration = Duration::from_secs(1);
    let synchronise =
        || B::sync(device).map_err(|error| anyhow!("the device does not answer: {error:?}"));
    synchronise()?;
    let all = Instant::now();
    let mut best = f64::INFINITY;
    let mut repetitions = 0;
    while repetitions < AT_LEAST || all.elapsed() < LONG_ENOUGH {
        let began = Instant::now();
        let result = compute();
        synchronise()?;
        best = best.min(began.elapsed().as_secs_f64());
        drop(result);
        repetitions += 1;
    }
    Ok(best)
}
