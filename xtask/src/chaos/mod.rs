//! `cargo xtask chaos`: kills of every command that writes, full disks, folders that cannot be written to, two
//! processes on one folder, streams that nobody reads.
//!
//! | file | what |
//! |---|---|
//! | `workshop` | a tiny teacher and texts, made here: what the user has |
//! | `job` | the commands, how each begins and goes on |
//! | `inspect` | a file: whether it is whole, whether it is what it should be |
//! | `whole` | an output: what in it is not whole |
//! | `process` | a command that is started, killed, or left to end |
//! | `disk` | a small file system in memory |
//! | `report` | what was counted |
//!
//! A *life* is one output, from the first start of its command to its end, whatever comes between. After
//! everything that happens to it: nothing of the user's is lost or changed, and no half file stands under a
//! final name. At the end it is, byte for byte, what a command makes that nothing happened to.

mod disk;
mod inspect;
mod job;
mod process;
mod report;
mod whole;
mod workshop;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tempfile::TempDir;
use xshell::Shell;

use crate::bench::executables;
use crate::programs::cargo;

use disk::SmallDisk;
use job::{Job, Made};
use process::{Ended, Program};
use report::{Report, Row};
use whole::Whole;
use workshop::Workshop;

/// The seed of what comes by chance, unless another is given.
const SEED: u64 = 0;
/// The most kills of one life.
const KILLS_OF_A_LIFE: usize = 4;
/// So many kills for each disk, folder, pair and stream.
const KILLS_FOR_A_MISHAP: usize = 25;

#[derive(Debug, Args)]
pub(crate) struct ChaosArgs {
    /// How often a command is killed, all commands together.
    #[arg(long, default_value_t = 200, value_name = "N")]
    kills: usize,
    /// A `burn-lti` that was built already. If absent it is built, for flex alone.
    #[arg(long, value_name = "PROGRAM")]
    command: Option<PathBuf>,
    /// Only these commands.
    #[arg(long = "job", value_name = "NAME")]
    jobs: Vec<String>,
    /// Another number brings kills at other moments.
    #[arg(long, default_value_t = SEED, value_name = "N")]
    seed: u64,
    /// Where the counts go, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl ChaosArgs {
    /// `shell` is in the repository.
    pub(crate) fn run(&self, shell: &Shell, root: &Path) -> Result<()> {
        let command = match &self.command {
            Some(command) => fs::canonicalize(command)
                .with_context(|| format!("there is no program {}", command.display()))?,
            None => build(shell)?,
        };
        let mut workshop = Workshop::new(root)?;
        let program = Program::new(command, workshop.path());
        workshop.train(&program)?;
        let jobs = Job::all(&program)?;
        for name in &self.jobs {
            let known = jobs.iter().any(|job| job.name == *name);
            ensure!(known, "there is no command `{name}` that writes");
        }
        let asked = |job: &&Job| self.jobs.is_empty() || self.jobs.iter().any(|it| it == job.name);
        let jobs: Vec<&Job> = jobs.iter().filter(asked).collect();
        let mut chaos = Chaos::new(&program, &workshop, &jobs, self.seed)?;
        chaos.all(&jobs, self.kills)?;
        let report = chaos.report;
        println!("{report}");
        if let Some(path) = &self.json {
            fs::write(path, report.to_json(self.kills, self.seed)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let failures = report.failures.len();
        ensure!(
            failures == 0,
            "{failures} promises were broken: they are named above"
        );
        Ok(())
    }
}

/// A `burn-lti` for flex, as a test has it.
fn build(shell: &Shell) -> Result<PathBuf> {
    let messages = cargo(shell)
        .args(["build", "--package", "burn-lti-llama", "--bin", "burn-lti"])
        .args(["--no-default-features", "--features", "cli,flex"])
        .arg("--message-format=json-render-diagnostics")
        .read()?;
    let program = executables(&messages).get("burn-lti").cloned();
    program.context("cargo built no program burn-lti")
}

/// Where the tests' build leaves the program.
pub(crate) fn program_of_tests() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    target
        .join("debug")
        .join(format!("burn-lti{}", env::consts::EXE_SUFFIX))
}

/// What each command makes when nothing happens, and what became of those to which something did.
struct Chaos<'a> {
    program: &'a Program,
    workshop: &'a Workshop,
    /// By job: what it makes, and how long that takes.
    made: Vec<(Made, Duration)>,
    lives: TempDir,
    next: usize,
    random: Random,
    report: Report,
}

impl<'a> Chaos<'a> {
    fn new(program: &'a Program, workshop: &'a Workshop, jobs: &[&Job], seed: u64) -> Result<Self> {
        let mut chaos = Self {
            program,
            workshop,
            made: Vec::new(),
            lives: tempfile::tempdir().context("cannot make a temporary folder")?,
            next: 0,
            random: Random(seed),
            report: Report::new(jobs.iter().map(|job| job.name)),
        };
        for job in jobs {
            let out = chaos.new_out(job)?;
            let ended = program.run_for(&job.begins(&out), job.longest())?;
            ensure!(
                job.never_ends || ended.succeeded(),
                "`{}` fails although nothing happens to it: {ended}",
                job.name
            );
            chaos.made.push((Made::of(&out)?, ended.time));
        }
        Ok(chaos)
    }

    fn all(&mut self, jobs: &[&Job], kills: usize) -> Result<()> {
        let mishaps = (kills / KILLS_FOR_A_MISHAP / jobs.len().max(1)).max(1);
        for (index, job) in jobs.iter().enumerate() {
            for _ in 0..mishaps {
                if job.never_ends {
                    continue;
                }
                self.full_disk(index, job)?;
                self.locked_folder(index, job)?;
                self.two_at_once(index, job)?;
                self.nobody_reads(index, job)?;
            }
        }
        // One that is always faster than its kill has none: it does not go on for ever.
        let (mut left, mut lives) = (kills, kills.saturating_mul(20));
        for index in (0..jobs.len()).cycle() {
            lives = lives.saturating_sub(1);
            if left == 0 || lives == 0 {
                break;
            }
            // One that takes long has fewer.
            if jobs[index].never_ends && self.random.below(4) > 0 {
                continue;
            }
            left -= self.life(index, jobs[index], left.min(KILLS_OF_A_LIFE))?;
        }
        Ok(())
    }

    /// Kills a command up to `most` times while it makes one output, lets it come to its end, and says how
    /// often it was killed.
    fn life(&mut self, index: usize, job: &Job, most: usize) -> Result<usize> {
        let out = self.new_out(job)?;
        let (mut kills, mut args, mut last) = (0, job.begins(&out), None);
        let wanted = 1 + self.random.below(most);
        while kills < wanted && last.is_none() {
            let longest = self.made[index].1.mul_f64(1.1);
            let moment = longest.mul_f64(self.random.share());
            let ended = self.program.kill_after(&args, moment)?;
            let what = format!("{} killed after {moment:?}, kill {}", job.name, kills + 1);
            self.inspect(index, job, &out, &what)?;
            if ended.was_killed() {
                kills += 1;
                self.report.rows[index].kills += 1;
                self.leave_a_note(job, &out)?;
                args = job.goes_on(&out);
            } else {
                last = Some(ended);
            }
        }
        if !job.never_ends {
            let what = format!("{} after {kills} kills", job.name);
            match last {
                Some(ended) => self.judge(index, job, &out, &ended, &what)?,
                None => self.finish(index, job, &out, &args, &what)?,
            }
        }
        self.forget(&out)?;
        Ok(kills)
    }

    /// A disk with less room than the output takes, then one with enough.
    fn full_disk(&mut self, index: usize, job: &Job) -> Result<()> {
        let Some(disk) = self.disk()? else {
            return Ok(());
        };
        let out = job.out_in(disk.path());
        let bytes = self.made[index].0.bytes();
        let room = 4096 + self.random.below(bytes as usize) as u64;
        disk.resize(room)?;
        let ended = self.program.run(&job.begins(&out))?;
        self.report.rows[index].full_disks += 1;
        let what = format!("{} on a disk of {room} bytes", job.name);
        self.inspect(index, job, &out, &what)?;
        if !ended.succeeded() && !ended.is_told() {
            self.fail(index, |row| &mut row.stuck, &what, &ended.to_string());
        }
        disk.resize(64 << 20)?;
        match ended.succeeded() {
            true => self.compare(index, &out, &what),
            false => {
                let what = format!("{what}, then with room");
                self.finish(index, job, &out, &job.goes_on(&out), &what)
            }
        }
    }

    /// A folder that the command may not write to. It says so, and that is all.
    fn locked_folder(&mut self, index: usize, job: &Job) -> Result<()> {
        let Some(disk) = self.disk()? else {
            return Ok(());
        };
        let note = disk.path().join("notes.txt");
        fs::write(&note, NOTE)?;
        disk.lock()?;
        let ended = self.program.run(&job.begins(&job.out_in(disk.path())))?;
        self.report.rows[index].locked_folders += 1;
        let what = format!("{} in a folder that is locked", job.name);
        if ended.succeeded() || !ended.is_told() {
            self.fail(index, |row| &mut row.stuck, &what, &ended.to_string());
        }
        let left: Vec<_> = fs::read_dir(disk.path())?.collect();
        if left.len() != 1 || fs::read_to_string(&note)? != NOTE {
            self.fail(
                index,
                |row| &mut row.lost,
                &what,
                "the folder is not what it was",
            );
        }
        self.inspect_inputs(index, &what)
    }

    /// The same command twice on one output at the same time: one may be refused, and the output is whole.
    fn two_at_once(&mut self, index: usize, job: &Job) -> Result<()> {
        let out = self.new_out(job)?;
        let args = job.begins(&out);
        let (first, second) = self.program.run_both(&args)?;
        self.report.rows[index].pairs += 1;
        let what = format!("{} twice at once", job.name);
        self.inspect(index, job, &out, &what)?;
        for ended in [&first, &second] {
            if !ended.succeeded() && !ended.is_told() {
                self.fail(index, |row| &mut row.stuck, &what, &ended.to_string());
            }
        }
        match first.succeeded() || second.succeeded() {
            true => self.compare(index, &out, &what)?,
            false => self.finish(index, job, &out, &job.goes_on(&out), &what)?,
        }
        self.forget(&out)
    }

    /// Both streams are closed. What is written is all there.
    fn nobody_reads(&mut self, index: usize, job: &Job) -> Result<()> {
        let out = self.new_out(job)?;
        self.program.run_unread(&job.begins(&out))?;
        self.report.rows[index].streams += 1;
        let what = format!("{} whose streams nobody reads", job.name);
        self.inspect(index, job, &out, &what)?;
        self.compare(index, &out, &what)?;
        self.forget(&out)
    }

    /// Runs a command to its end and compares what it made. What was done already is as good.
    fn finish(
        &mut self,
        index: usize,
        job: &Job,
        out: &Path,
        args: &[String],
        what: &str,
    ) -> Result<()> {
        let ended = self.program.run(args)?;
        self.judge(index, job, out, &ended, what)
    }

    /// Looks at what a command made that came to its end.
    fn judge(
        &mut self,
        index: usize,
        job: &Job,
        out: &Path,
        ended: &Ended,
        what: &str,
    ) -> Result<()> {
        self.inspect(index, job, out, what)?;
        if !job.is_done(ended, out) {
            self.fail(index, |row| &mut row.stuck, what, &ended.to_string());
            return Ok(());
        }
        self.report.rows[index].ends += 1;
        let note = fs::read_to_string(out.join(NOTE_NAME));
        if out.with_extension("noted").exists() && note.ok().as_deref() != Some(NOTE) {
            self.fail(
                index,
                |row| &mut row.lost,
                what,
                "a file beside the results is gone",
            );
        }
        self.compare(index, out, what)
    }

    /// Everything that must hold at any moment.
    fn inspect(&mut self, index: usize, job: &Job, out: &Path, what: &str) -> Result<()> {
        let Whole {
            half,
            broken_folders,
        } = Whole::of(out, &self.made[index].0, job)?;
        for file in half.iter().chain(&broken_folders) {
            self.fail(index, |row| &mut row.half, what, file);
        }
        self.inspect_inputs(index, what)
    }

    fn inspect_inputs(&mut self, index: usize, what: &str) -> Result<()> {
        for file in self.workshop.changed()? {
            self.fail(index, |row| &mut row.lost, what, &file);
            self.workshop.mend()?;
        }
        Ok(())
    }

    fn compare(&mut self, index: usize, out: &Path, what: &str) -> Result<()> {
        if let Some(difference) = self.made[index].0.difference(out)? {
            self.fail(index, |row| &mut row.unlike, what, &difference);
        }
        Ok(())
    }

    /// A file of the user's beside the results, where the command has begun to make this folder its own.
    fn leave_a_note(&self, job: &Job, out: &Path) -> Result<()> {
        if job.is_begun(out) {
            fs::write(out.join(NOTE_NAME), NOTE)?;
            fs::write(out.with_extension("noted"), "")?;
        }
        Ok(())
    }

    fn fail(&mut self, index: usize, count: fn(&mut Row) -> &mut usize, what: &str, why: &str) {
        *count(&mut self.report.rows[index]) += 1;
        self.report.failures.push(format!("{what}: {why}"));
    }

    fn disk(&mut self) -> Result<Option<SmallDisk>> {
        self.next += 1;
        let path = self.lives.path().join(format!("disk-{}", self.next));
        let disk = SmallDisk::new(path)?;
        if disk.is_none() {
            self.report.without_disks = true;
        }
        Ok(disk)
    }

    fn new_out(&mut self, job: &Job) -> Result<PathBuf> {
        self.next += 1;
        let folder = self.lives.path().join(self.next.to_string());
        fs::create_dir(&folder)?;
        Ok(job.out_in(&folder))
    }

    fn forget(&self, out: &Path) -> Result<()> {
        let folder = out.parent().context("an output lies in a folder")?;
        fs::remove_dir_all(folder).with_context(|| folder.display().to_string())
    }
}

const NOTE_NAME: &str = "notes.txt";
const NOTE: &str = "Mine: keep it.\n";

/// Numbers by chance that follow from a seed: SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to, without, `end`; 0 if that is 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % (end as u64).max(1)) as usize
    }

    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_follows_from_the_seed() {
        // The first number of the reference implementation for the seed 0.
        assert_eq!(Random(0).next(), 0xe220_a839_7b1d_cdaf);
        let shares: Vec<f64> = (0..1000)
            .scan(Random(7), |random, _| Some(random.share()))
            .collect();
        assert!(shares.iter().all(|share| (0.0..1.0).contains(share)));
        let mean = shares.iter().sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "{mean}");
        assert_eq!(Random(1).below(0), 0);
    }
}
