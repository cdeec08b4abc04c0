//! One cargo command.

use std::env;

use anyhow::Result;
use xshell::{Shell, cmd};

/// A cargo command with a name for the table of `cargo xtask ci`.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: String,
    args: Vec<String>,
    env: Vec<(&'static str, &'static str)>,
}

/// The step `name` that calls cargo with `args`.
pub(crate) fn step<A: Into<String>>(
    name: impl Into<String>,
    args: impl IntoIterator<Item = A>,
) -> Step {
    Step {
        name: name.into(),
        args: args.into_iter().map(Into::into).collect(),
        env: Vec::new(),
    }
}

impl Step {
    pub(crate) fn with_args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn with_env(mut self, key: &'static str, value: &'static str) -> Self {
        self.env.push((key, value));
        self
    }

    /// Prints the command, then runs it in the folder of `shell`.
    pub(crate) fn run(&self, shell: &Shell) -> Result<()> {
        println!("$ {}", self.line());
        let cargo = env::var("CARGO").unwrap_or("cargo".to_owned());
        let args = &self.args;
        let command = cmd!(shell, "{cargo} {args...}").envs(self.env.iter().copied());
        Ok(command.quiet().run()?)
    }

    /// The command as one would type it.
    fn line(&self) -> String {
        let env = self
            .env
            .iter()
            .map(|(key, value)| format!("{key}='{value}' "));
        let args = self.args.iter().map(|arg| match arg.contains('*') {
            true => format!(" '{arg}'"),
            false => format!(" {arg}"),
        });
        format!(
            "{}cargo{}",
            env.collect::<String>(),
            args.collect::<String>()
        )
    }
}
