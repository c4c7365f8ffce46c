//! `egress token create|list|revoke`: who may use the API (API-2).
//!
//! They work on the store itself, whether or not the daemon runs; it asks the store at every request.

use super::context::Context;
use super::{CliError, Exit, table};
use crate::config;
use crate::control::Failure;
use crate::document::nearest;
use crate::store::{self, Permission, SqliteStore, StateStore as _};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Change {
    /// Make a token; it is printed this once, alone on standard output.
    Create {
        /// An account (id or name) that it is for; several with commas between, or given several times.
        #[arg(
            long = "account",
            value_name = "ACCOUNT",
            required = true,
            value_delimiter = ','
        )]
        accounts: Vec<String>,
        /// Something that it allows; several with commas between, or given several times.
        #[arg(
            long = "permission",
            value_name = "PERMISSION",
            required = true,
            value_delimiter = ','
        )]
        permissions: Vec<Permission>,
        /// What to call it.
        #[arg(long, default_value = "")]
        name: String,
    },
    /// List tokens, without their secrets.
    List,
    /// Forget a token: whoever uses it is turned away from now on.
    Revoke {
        /// Its id, as `egress token list` prints it.
        id: String,
    },
}

pub(super) fn run(context: &mut Context<'_>, change: Change) -> Result<Exit, CliError> {
    let (config, _) = context.config()?;
    // The store that is there, as it is: a token without accounts to be for would be of no use, and a daemon of an
    // older version may be using it.
    let mut store = store::open_tokens(&config.store).map_err(Failure::from)?;
    match change {
        Change::Create {
            accounts,
            mut permissions,
            name,
        } => {
            let accounts = ids(&config.store, &accounts)?;
            permissions.sort_unstable();
            permissions.dedup();
            let new = store
                .create_token(name, permissions, accounts)
                .map_err(Failure::from)?;
            context.print(&new, || new.token.clone())?;
        }
        Change::List => {
            let tokens = store.tokens().map_err(Failure::from)?;
            let rows: Vec<_> = tokens
                .iter()
                .map(|token| {
                    let permissions: Vec<_> =
                        token.permissions.iter().map(|one| one.name()).collect();
                    vec![
                        token.id.clone(),
                        token.name.clone(),
                        token.accounts.join(", "),
                        permissions.join(", "),
                    ]
                })
                .collect();
            context.print(&tokens, || {
                table::render(&["TOKEN", "NAME", "ACCOUNTS", "PERMISSIONS"], &[], &rows)
            })?;
        }
        Change::Revoke { id } => {
            if !store.revoke_token(&id).map_err(Failure::from)? {
                return Err(Failure::usage(
                    format!("there is no token {id}"),
                    "`egress token list` lists the tokens there are, by id",
                )
                .into());
            }
            context.print(&serde_json::json!({ "id": id }), || {
                format!("token {id} is revoked")
            })?;
        }
    }
    Ok(Exit::Done)
}

/// The ids of accounts given by id or name.
fn ids(store: &config::Store, references: &[String]) -> Result<Vec<String>, Failure> {
    let stored = SqliteStore::open_read_only(&store.sqlite)?.load()?;
    let resources = stored.resources();
    let mut ids = Vec::new();
    for reference in references {
        let Some(account) = resources.account(reference) else {
            let known = resources
                .accounts
                .iter()
                .flat_map(|account| [account.id.as_str(), account.name.as_str()]);
            let remedy = nearest(reference, known).map_or_else(
                || "accounts come from the resources file: `egress apply -f FILE`".to_owned(),
                |like| format!("did you mean {like}?"),
            );
            return Err(Failure::usage(
                format!("there is no account {reference}"),
                remedy,
            ));
        };
        if !ids.contains(&account.id) {
            ids.push(account.id.clone());
        }
    }
    Ok(ids)
}
