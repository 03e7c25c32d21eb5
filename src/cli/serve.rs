//! `palisade serve`: the live page of a deployment.

use std::io::Write;
use std::net::SocketAddr;

use analyzer::Minute;
use clap::Args;
use tokio::net::TcpListener;

use super::deployment::{StateArgs, runtime, this_minute};
use super::exit::{Exit, Failure};
use super::output::{Printer, stdout};
use super::time;
use crate::inputs::describe;
use crate::place::Place;
use crate::serve::{self, Settings, fresh_token};

#[derive(Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    state: StateArgs,
    /// The logs, to show requests too: a folder, or `s3://bucket/prefix` up to the year
    #[arg(long, value_name = "PLACE")]
    logs: Option<Place>,
    /// Where to listen; whoever can reach it can look
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8711")]
    listen: SocketAddr,
    /// A name besides `localhost` by which the page may be asked for
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// Let whoever has the token of this start ban, unban and allow
    #[arg(long)]
    allow_writes: bool,
    /// As of this time
    #[arg(long, value_name = "TIME", value_parser = time::parse_ms)]
    now: Option<i64>,
}

pub(super) fn run(args: &ServeArgs, printer: &Printer) -> Result<Exit, Failure> {
    let token = if args.allow_writes {
        Some(fresh_token().map_err(|error| Failure::new(format!("failed to make a token: {error}")))?)
    } else {
        None
    };
    runtime()?.block_on(async {
        let failed = |error: std::io::Error| {
            Failure::new(format!("failed to listen on `{}`: {}", args.listen, describe(&error)))
                .hint("`--listen 127.0.0.1:0` takes any port that is free")
        };
        let listener = TcpListener::bind(args.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if !address.ip().is_loopback() {
            printer.warn("whoever can reach this address can look, and sees requests and addresses of clients");
            if token.is_some() {
                printer.warn("whoever reads the network sees the token; put TLS in front, or use a tunnel");
            }
        }
        match &token {
            None => writeln!(stdout(), "http://{address}/")?,
            Some(token) => writeln!(stdout(), "http://{address}/w/{token}/")?,
        }
        printer.note(match &token {
            None => "The page only shows; with `--allow-writes` it can change something. Ctrl-C ends it",
            Some(_) => "Whoever has this address can ban, unban and allow. Ctrl-C ends it",
        });
        let settings = Settings {
            state: args.state.state.clone(),
            logs: args.logs.clone(),
            now: args.now.map(Minute::of_ms),
            token,
            hosts: args.host.clone(),
        };
        serve::run(listener, settings, this_minute).await.map_err(failed)?;
        Ok(Exit::Done)
    })
}
