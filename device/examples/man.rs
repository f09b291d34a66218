// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Writes the manual pages of `virtgpu-device` and its subcommands, made from the command line, to
//! the folder that is given.

use std::io;

use clap::CommandFactory;
use virtgpu_device::options::cli::Cli;

fn main() -> io::Result<()> {
    let folder = std::env::args().nth(1);
    let folder = folder.ok_or_else(|| io::Error::other("usage: man FOLDER"))?;
    let command = Cli::command()
        .name("virtgpu-device")
        .disable_help_subcommand(true);
    clap_mangen::generate_to(command, folder)
}
