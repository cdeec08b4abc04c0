//! `burn-lti plan`

use anyhow::Result;
use burn_lti_llama::recipe::Recipe;

use crate::args::PlanArgs;

pub(crate) fn run(args: &PlanArgs) -> Result<()> {
    let recipe = Recipe::load(&args.recipe.recipe, &args.recipe.set)?;
    let plan = burn_lti_llama::distill::plan(&recipe)?;
    if args.json.json {
        println!("{}", serde_json::to_string_pretty(&plan)?);
    } else {
        print!("{}", plan.render());
    }
    Ok(())
}
