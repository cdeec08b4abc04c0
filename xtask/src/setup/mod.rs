//! `cargo xtask setup`: what a backend, a comparison or a demonstration needs beyond this
//! repository. Everything goes into the cache folder, or is a package of the system.
//!
//! A part that is complete is left as it is. One that an interrupted run began is finished.

pub(crate) mod libtorch;
pub(crate) mod peers;
mod python;
pub(crate) mod teachers;
mod vulkan;
mod wheel;

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use xshell::Shell;

use crate::cache::Cache;
use libtorch::Libtorch;

/// Something to set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Component {
    /// libtorch 2.9 for the CPU, for the backend `tch`: 900 MB to fetch, 500 MB to keep.
    Tch,
    /// A Vulkan driver, for the backend `wgpu`: a software device where there is no GPU.
    Wgpu,
    /// A Python environment to compare with: PyTorch 2.9, transformers, JAX. 7.5 GB.
    Peers,
    /// Another one, with the newest PyTorch. 5.6 GB.
    PeersNewest,
    /// SmolLM2-135M-Instruct as a Hugging Face folder: 100 MB to fetch, 540 MB to keep, and `peers`.
    Teachers,
    /// All of these.
    All,
}

/// What is set up if nothing is named: all that the tests need.
const DEFAULT: [Component; 2] = [Component::Tch, Component::Wgpu];

impl Component {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tch => "tch",
            Self::Wgpu => "wgpu",
            Self::Peers => "peers",
            Self::PeersNewest => "peers-newest",
            Self::Teachers => "teachers",
            Self::All => "all",
        }
    }
}

/// Which of the components that backends need are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Installed {
    pub(crate) tch: bool,
    pub(crate) wgpu: bool,
}

#[cfg(test)]
impl Installed {
    pub(crate) const NOTHING: Self = Self {
        tch: false,
        wgpu: false,
    };
    pub(crate) const ALL: Self = Self {
        tch: true,
        wgpu: true,
    };
}

impl Installed {
    pub(crate) fn find(libtorch: Option<&Libtorch>) -> Self {
        Self {
            tch: libtorch.is_some(),
            wgpu: vulkan::is_there(),
        }
    }

    pub(crate) fn has(&self, component: Component) -> bool {
        match component {
            Component::Tch => self.tch,
            Component::Wgpu => self.wgpu,
            Component::Peers | Component::PeersNewest | Component::Teachers | Component::All => {
                false
            }
        }
    }
}

/// Sets up `components`, or the default ones. The folder of `shell` is the repository.
pub(crate) fn run(shell: &Shell, cache: &Cache, components: &[Component]) -> Result<()> {
    let mut components = match components {
        [] => DEFAULT.to_vec(),
        some if some.contains(&Component::All) => Component::value_variants().to_vec(),
        some => some.to_vec(),
    };
    components.sort();
    components.dedup();
    let _lock = cache.lock()?;
    for component in components {
        match component {
            Component::Tch => libtorch::set_up(shell, cache)?,
            Component::Wgpu => vulkan::set_up(shell)?,
            Component::Peers => {
                peers::PEERS.set_up(shell, cache)?;
            }
            Component::PeersNewest => {
                peers::NEWEST.set_up(shell, cache)?;
            }
            Component::Teachers => teachers::set_up(shell, cache)?,
            Component::All => {}
        }
    }
    Ok(())
}

/// One line about a component that is there.
fn report(component: Component, what: &str, place: &Path) {
    println!("{}: {what} is in {}", component.name(), place.display());
}
