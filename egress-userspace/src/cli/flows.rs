//! `egress flows`: live flows, one a line, as they are found: there may be millions.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;

use super::context::{self, Context};
use super::{CliError, Exit};
use crate::control::{Failure, Filter, Request};
use crate::dataplane::api::FlowRecord;
use crate::inventory::flow_filter;

pub(super) fn run(context: &mut Context<'_>, filter: &Filter) -> Result<Exit, CliError> {
    let (config, _) = context.config()?;
    let request = Request::Flows {
        filter: filter.clone(),
    };
    let json = context.json;
    let mut out = BufWriter::new(&mut *context.out);
    let answer = context::ask(&config, &request, &mut |value| {
        // Looked at before it is passed on: what is printed is a flow, whatever daemon answered.
        write_flow(&mut out, json, &serde_json::from_value(value)?)
    })?;
    out.flush()?;
    drop(out);
    if answer.is_some() {
        return Ok(Exit::Done);
    }
    let local = context.local(config)?;
    let Some(view) = local.view else {
        return Ok(Exit::Done);
    };
    let filter = flow_filter(&local.stored, filter)?;
    let mut out = BufWriter::new(&mut *context.out);
    let mut broken = None;
    view.flows(
        &filter,
        &mut |flow| match write_flow(&mut out, json, &flow) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                broken = Some(error);
                ControlFlow::Break(())
            }
        },
    )
    .map_err(Failure::from)?;
    if let Some(error) = broken {
        return Err(error.into());
    }
    out.flush()?;
    Ok(Exit::Done)
}

fn write_flow(out: &mut impl Write, json: bool, flow: &FlowRecord) -> io::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, flow)?;
        return writeln!(out);
    }
    writeln!(
        out,
        "{} {} -> {} -> {}  zone {}, pool {}, {}, age {} s, idle {} s, out {} packets {} bytes, in {} packets {} bytes, {}",
        flow.protocol,
        flow.inside,
        flow.egress,
        flow.origin,
        flow.zone,
        flow.pool,
        flow.state,
        flow.age_s,
        flow.idle_s,
        flow.packets_out,
        flow.bytes_out,
        flow.packets_in,
        flow.bytes_in,
        flow.path
    )
}
