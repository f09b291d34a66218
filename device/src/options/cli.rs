// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The command line: every option, its explanation, and what it makes of [`Options`].
//!
//! Help texts and the manual page are made from the comments here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::capset::Capset;
use super::Options;
use crate::log::names;
use crate::mirror::Limits;
use crate::misbehave::adversary::{Adversary, Mode};
use crate::misbehave::mutant::Mutant;
use crate::queues::QUEUE_SIZE;

/// A reference virtio-gpu device with a compute context, as a vhost-user process.
///
/// It listens on a socket, serves one virtual machine (QEMU's vhost-user-test-device-pci with
/// virtio-id=16,num_vqs=4,config_size=64 and shared memory), and ends with it.
///
/// Exit status: 0 when the virtual machine ended the connection, 1 after an error, 2 for a wrong
/// command line.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, max_term_width = 100)]
pub struct Cli {
    /// What to do instead of being a device.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of the device.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What to do instead of being a device.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check an event log against the rules of the protocol.
    ///
    /// Prints every violation and a summary. Exit status: 0 without violations, 1 with, or if the
    /// log has no end.
    CheckLog {
        /// The device was killed, so that the log need not have an end.
        #[arg(long)]
        unfinished: bool,
        /// The file that `--event-log` wrote.
        file: PathBuf,
    },
}

/// Options of the device.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The Unix socket to listen on. An old one there is replaced. "ready" is printed once it
    /// accepts connections.
    #[arg(long, value_name = "PATH", required_unless_present_any = ["list_adversary", "list_mutants"])]
    pub socket: Option<PathBuf>,

    /// Size of the host-visible memory region through which the guest maps host blobs: bytes, or
    /// with a suffix K, M or G; a multiple of 4K; 0 for none.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    pub hostmem: u64,

    /// Offer BLOB_ALIGNMENT: sizes of blobs must be multiples of this power of two.
    #[arg(long, value_name = "BYTES", value_parser = parse_power_of_two)]
    pub blob_alignment: Option<u32>,

    /// Offer ACCESS_PLATFORM, so that the driver uses DMA addresses. For a guest without IOMMU;
    /// QEMU's device needs iommu_platform=on.
    #[arg(long)]
    pub access_platform: bool,

    /// Do not offer RING_INDIRECT_DESC: each part of a command takes a descriptor of the ring.
    #[arg(long)]
    pub no_indirect: bool,

    /// Most descriptors of a queue: a power of two. QEMU's device needs vq_size.
    #[arg(long, value_name = "N", default_value_t = QUEUE_SIZE as u16, value_parser = parse_queue_size)]
    pub queue_size: u16,

    /// Offer no contexts, and nothing that needs one: a device for pictures.
    #[arg(long, conflicts_with = "capsets")]
    pub no_virgl: bool,

    /// Let virglrenderer carry out OpenGL, in software or on a GPU, and offer its capability sets
    /// (1 and 2). Needs libvirglrenderer.so.1 with EGL, and a device that is not linked statically.
    #[arg(long, conflicts_with = "no_virgl")]
    pub virgl_renderer: bool,

    /// Do not offer the mirror extension.
    #[arg(long)]
    pub no_mirror: bool,

    /// Most entries of a MAP.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_entries,
        value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub mirror_entries: u32,

    /// Most spaces at a time.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_spaces)]
    pub mirror_spaces: u32,

    /// Bytes that addresses and lengths in spaces must be multiples of: a power of two, 4096 or
    /// more. Where guest RAM is in huge pages of hugetlbfs, it is at least the size of these.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().granularity,
        value_parser = parse_alignment)]
    pub mirror_granularity: u32,

    /// Most mappings of the host that spaces may use, one for each run of pages and one for each
    /// gap between runs; 0 for half of vm.max_map_count.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub mirror_mappings: usize,

    /// Do not offer the resolution of faults: no context can be in fault mode.
    #[arg(long)]
    pub no_page_fault: bool,

    /// Most faults of a space that are not resolved.
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_faults,
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub mirror_faults: u32,

    /// Be a device whose atomic accesses are not coherent with those of the guest's processors: in
    /// the address space of a context they ask for exclusive pages, and are a load and a store.
    #[arg(long)]
    pub exclusive_atomics: bool,

    /// Keep rewriting each writable page that is mapped in a marked space with the bytes that it
    /// had when it was mapped, up to the moment it is revoked. The mark is bit 63 of the blob_id of
    /// a HOST3D_GUEST resource. No one else may write to the memory of a marked resource while it
    /// is mapped.
    #[arg(long)]
    pub hammer: bool,

    /// Offer one more capability set, of SIZE bytes, after the compute context's (29). Contexts of
    /// it execute the compute operations too. 8 looks like AMD's ROCm. May be repeated.
    #[arg(long = "capset", value_name = "ID:SIZE")]
    pub capsets: Vec<Capset>,

    /// Misbehave like this on the control queue, and on the mirror queue if `--adversary-on` names
    /// its commands; N means something else for each MODE. May be
    /// repeated: then everything at once. `--list-adversary` explains each.
    #[arg(
        long = "adversary",
        value_name = "MODE[:N]",
        help_heading = "Misbehaviour"
    )]
    pub adversary: Vec<Mode>,

    /// Of the ways that `--adversary` gives, do one each time and not all, and do it to commands
    /// that the seed chooses: every Nth on average, as `--adversary-every` says.
    #[arg(long, help_heading = "Misbehaviour")]
    pub adversary_random: bool,

    /// Mistreat only commands of this type, for example SUBMIT_3D. May be repeated.
    #[arg(long, value_name = "COMMAND", value_parser = parse_command, help_heading = "Misbehaviour")]
    pub adversary_on: Vec<u32>,

    /// Mistreat only requests of contexts whose debug name begins with PREFIX, those that name a
    /// resource that such a context created or attached, and commands of the mirror queue that name
    /// a space of such a context or of its resources.
    #[arg(long, value_name = "PREFIX", help_heading = "Misbehaviour")]
    pub adversary_context: Option<String>,

    /// Treat the first N of these commands well.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        help_heading = "Misbehaviour"
    )]
    pub adversary_from: u64,

    /// Mistreat only every Nth of these commands.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        help_heading = "Misbehaviour"
    )]
    pub adversary_every: u64,

    /// Mistreat N of these commands, then behave; 0 for no end.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        help_heading = "Misbehaviour"
    )]
    pub adversary_count: u64,

    /// Break the contract like this. May be repeated. `--list-mutants` explains each.
    #[arg(long = "mutant", value_name = "NAME", help_heading = "Misbehaviour")]
    pub mutants: Vec<Mutant>,

    /// Print the names of all ways to break the contract, with explanations, and exit.
    #[arg(long, help_heading = "Misbehaviour")]
    pub list_mutants: bool,

    /// The seed of all random numbers.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        help_heading = "Misbehaviour"
    )]
    pub seed: u64,

    /// Print the names of all ways to misbehave, with explanations, and exit.
    #[arg(long, help_heading = "Misbehaviour")]
    pub list_adversary: bool,

    /// Write what happens to this file, one JSON object a line, for `check-log` and for people.
    #[arg(long, value_name = "FILE")]
    pub event_log: Option<PathBuf>,
}

impl RunArgs {
    /// What the device offers.
    ///
    /// # Errors
    ///
    /// If a capability set is offered twice.
    pub fn options(&self) -> Result<Options, String> {
        let mut capsets = if self.no_virgl {
            Vec::new()
        } else {
            vec![Capset::compute()]
        };
        for capset in &self.capsets {
            let rendered = self.virgl_renderer && capset.id <= 2;
            if rendered || capsets.iter().any(|c| c.id == capset.id) {
                return Err(format!("--capset {} is given twice", capset.id));
            }
            capsets.push(capset.clone());
        }
        Ok(Options {
            virgl: !self.no_virgl,
            virgl_renderer: self.virgl_renderer,
            hostmem: self.hostmem,
            capsets,
            blob_alignment: self.blob_alignment.unwrap_or(0),
            access_platform: self.access_platform,
            indirect: !self.no_indirect,
            queue_size: self.queue_size.into(),
            mirror: (!self.no_mirror).then(|| Limits {
                max_entries: self.mirror_entries,
                max_spaces: self.mirror_spaces,
                granularity: self.mirror_granularity,
                mappings: self.mirror_mappings,
                max_faults: match self.no_page_fault {
                    true => 0,
                    false => self.mirror_faults,
                },
                ..Limits::default()
            }),
            exclusive_atomics: self.exclusive_atomics,
            hammer: self.hammer,
            mutants: self.mutants.clone(),
            adversary: Adversary {
                modes: self.adversary.clone(),
                random: self.adversary_random,
                on: self.adversary_on.clone(),
                context: self.adversary_context.clone(),
                from: self.adversary_from,
                every: self.adversary_every,
                count: self.adversary_count,
                seed: self.seed,
                ..Default::default()
            },
        })
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|e| format!("{e}"))?;
    match number.checked_mul(1 << shift) {
        Some(size) if size % 4096 != 0 => Err("not a multiple of 4K".into()),
        Some(size) if size <= 1 << 40 => Ok(size),
        _ => Err("more than 1024G".into()),
    }
}

fn parse_power_of_two(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(bytes) if bytes.is_power_of_two() => Ok(bytes),
        Ok(_) => Err("not a power of two".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_alignment(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(bytes) if bytes.is_power_of_two() && bytes >= 4096 => Ok(bytes),
        Ok(_) => Err("not a power of two, or less than 4096".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_queue_size(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(size) if size.is_power_of_two() && usize::from(size) <= QUEUE_SIZE => Ok(size),
        Ok(_) => Err(format!("not a power of two, or more than {QUEUE_SIZE}")),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_command(text: &str) -> Result<u32, String> {
    names::command_number(text).ok_or_else(|| "no command".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("256M"), Ok(256 << 20));
        assert_eq!(parse_size("8192"), Ok(8192));
        assert_eq!(parse_size("0"), Ok(0));
        for bad in ["", "M", "1", "x", "-1M", "99999999999G", "2000G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_alignment("65536"), Ok(65536));
        for bad in ["", "0", "5000", "2048"] {
            assert!(parse_alignment(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_queue_size("16"), Ok(16));
        for bad in ["", "0", "100", "2048", "65536"] {
            assert!(parse_queue_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn renderer() {
        let options = |more: &[&str]| {
            let words = ["virtgpu-device", "--socket", "x", "--virgl-renderer"];
            let cli = Cli::try_parse_from(words.iter().chain(more)).map_err(|e| e.to_string())?;
            cli.run.options()
        };
        assert!(options(&[]).unwrap().virgl_renderer);
        assert!(options(&["--capset", "8:24"]).is_ok());
        // The renderer has one of this id.
        assert!(options(&["--capset", "2:24"]).is_err());
        assert!(options(&["--no-virgl"]).is_err());
    }

    #[test]
    fn aims_at_a_context() {
        let words = "virtgpu-device --socket x --adversary ignore --adversary-context silent";
        let cli = Cli::try_parse_from(words.split(' ')).unwrap();
        let adversary = cli.run.options().unwrap().adversary;
        assert_eq!(adversary.context.as_deref(), Some("silent"));
    }

    #[test]
    fn subcommands_need_no_socket() {
        assert!(Cli::try_parse_from(["virtgpu-device", "check-log", "x"]).is_ok());
        assert!(Cli::try_parse_from(["virtgpu-device", "--socket", "x"]).is_ok());
        assert!(Cli::try_parse_from(["virtgpu-device"]).is_err());
    }
}
