//! Shell completions and the manual page, both from the one definition of the command line.

use std::io::{self, Write};

use clap::{Args, Command};
use clap_complete::Shell;

use super::exit::{Exit, Failure};

#[derive(Args)]
pub(super) struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

pub(super) fn completions(args: &CompletionsArgs, mut command: Command) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "palisade", &mut script);
    io::stdout().write_all(&script)?;
    Ok(Exit::Done)
}

/// One page with every command in it, so that `palisade man | man -l -` answers everything.
pub(super) fn man(command: &Command) -> Result<Exit, Failure> {
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command.clone());
    man.render(&mut page)?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let man = clap_mangen::Man::new(sub.clone());
        writeln!(page, ".SH \"PALISADE {}\"", sub.get_name().to_uppercase())?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
    }
    io::stdout().write_all(&page)?;
    Ok(Exit::Done)
}
