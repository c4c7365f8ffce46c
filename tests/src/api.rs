//! The daemon's HTTP API as `curl` on a node sees it.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    config::{Server, ZONE_ID},
    netns::Namespace,
    site::{Plan, Site},
    standard::{GATEWAY, POOL},
};

/// Where the API listens in the gateway's namespace.
pub const LISTEN: &str = "127.0.0.1:8080";
/// The account that owns pools and zones.
pub const ACCOUNT: &str = "7f8a5b0c3d2e4f60718293a4b5c6d7e8";
/// Another account.
pub const OTHER_ACCOUNT: &str = "ffffffffffffffffffffffffffffffff";
/// The other account's zone.
pub const OTHER_ZONE: &str = "11111111111111111111111111111111";
/// A zone of the first account whose setting stands in the file.
pub const FILED_ZONE: &str = "22222222222222222222222222222222";

/// All that a token may change, the operator's part included.
pub const WRITE: [&str; 3] = [
    "zone-settings:write",
    "account-egress:write",
    "account-addresses:write",
];

/// A client with a token.
#[derive(Clone, Debug)]
pub struct Api {
    node: Namespace,
    base: String,
    token: Option<String>,
    /// More options of `curl`.
    options: Vec<String>,
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The headers, as they came.
    pub headers: String,
    /// The body.
    pub text: String,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.text).with_context(|| format!("no JSON: {self:?}"))
    }

    /// The status, and the code of the first error; 0 if there is none.
    ///
    /// # Errors
    /// When the body is not JSON.
    pub fn outcome(&self) -> Result<(u16, u64)> {
        let code = self.json()?["errors"][0]["code"].as_u64().unwrap_or(0);
        Ok((self.status, code))
    }
}

impl Api {
    /// A client on the gateway, with a token that is made for it.
    ///
    /// # Errors
    /// When the token cannot be made.
    pub fn new(site: &Site, account: &str, permissions: &[&str]) -> Result<Self> {
        let mut arguments = vec!["token", "create", "--account", account];
        for permission in permissions {
            arguments.extend(["--permission", *permission]);
        }
        let token = site.gateway.text(arguments)?;
        Ok(Self {
            token: Some(token.trim().to_owned()),
            ..Self::without_token(site)
        })
    }

    /// A client on the gateway that shows no token.
    #[must_use]
    pub fn without_token(site: &Site) -> Self {
        Self {
            node: site.node(GATEWAY),
            base: format!("http://{LISTEN}"),
            token: None,
            options: Vec::new(),
        }
    }

    /// A client on a node where a daemon serves, with a token unless it is empty.
    #[must_use]
    pub fn on(node: Namespace, token: &str) -> Self {
        Self {
            node,
            base: format!("http://{LISTEN}"),
            token: (!token.is_empty()).then(|| token.to_owned()),
            options: Vec::new(),
        }
    }

    /// The same with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            token: Some(token.to_owned()),
            ..self.clone()
        }
    }

    /// The same from another node, by another address, with more options.
    #[must_use]
    pub fn from(&self, node: Namespace, base: &str, options: &[&str]) -> Self {
        Self {
            node,
            base: base.to_owned(),
            options: options.iter().map(ToString::to_string).collect(),
            ..self.clone()
        }
    }

    /// The token.
    #[must_use]
    pub fn token(&self) -> &str {
        self.token.as_deref().unwrap_or_default()
    }

    /// A call by `curl` with these arguments.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn call(&self, path: &str, arguments: &[&str]) -> Result<Reply> {
        let mut command = self.node.command("curl")?;
        command
            .arg(format!("{}{path}", self.base))
            .args(arguments)
            .args(&self.options)
            .args(["--silent", "--show-error", "--max-time", "60"])
            .args(["--dump-header", "-", "--write-out", "\n%{http_code}"]);
        if let Some(token) = &self.token {
            command.args(["--header", &format!("Authorization: Bearer {token}")]);
        }
        let output = command
            .output()
            .with_context(|| format!("starting {command:?}"))?;
        let all = String::from_utf8_lossy(&output.stdout).into_owned();
        let (rest, status) = all.rsplit_once('\n').unwrap_or(("", &all));
        // An interim answer (100) has a head of its own.
        let last = rest.rfind("HTTP/1.1 ").unwrap_or(0);
        let (headers, text) = rest[last..].split_once("\r\n\r\n").with_context(|| {
            format!(
                "curl {path}: {}: {all:?} {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )
        })?;
        Ok(Reply {
            status: status.parse().with_context(|| all.clone())?,
            headers: headers.to_lowercase(),
            text: text.to_owned(),
        })
    }

    /// `GET`.
    ///
    /// # Errors
    /// As [`Api::call`].
    pub fn get(&self, path: &str) -> Result<Reply> {
        self.call(path, &["--request", "GET"])
    }

    /// `PATCH` with a body, as the original's documentation writes it.
    ///
    /// # Errors
    /// As [`Api::call`].
    pub fn patch(&self, path: &str, body: &str) -> Result<Reply> {
        self.call(path, &["--request", "PATCH", "--json", body])
    }
}

/// The path of a zone's setting.
#[must_use]
pub fn aegis(zone: &str) -> String {
    format!("/client/v4/zones/{zone}/settings/aegis")
}

/// A site with the API on the gateway's loopback.
///
/// # Errors
/// When a part does not start.
pub fn started() -> Result<Site> {
    let mut site = prepare(&format!("[api]\nlisten = \"{LISTEN}\""))?;
    site.gateway.restart()?;
    Ok(site)
}

/// A site with the API, a client that may do these things for the zone's account, and the zone on its pool.
///
/// # Errors
/// When a part does not start, or the zone cannot be switched on.
pub fn enabled(permissions: &[&str]) -> Result<(Site, Api)> {
    let site = started()?;
    let api = Api::new(&site, "acme", permissions)?;
    let on = api.patch(
        &aegis(ZONE_ID),
        r#"{"value":{"enabled":true,"pool_id":"partners"}}"#,
    )?;
    ensure!(on.status == 200, "{on:?}");
    Ok((site, api))
}

/// A site with sections of `egress.toml`, resources of two accounts, and no daemon yet. The zones' settings are left to
/// the API, but for one zone.
///
/// # Errors
/// When a part does not start.
pub fn prepare(sections: &str) -> Result<Site> {
    let site = Site::prepare(&Plan {
        server: Server {
            sections: sections.to_owned(),
            ..Server::default()
        },
        ..Plan::default()
    })?;
    let [first, second] = POOL;
    let zone = ZONE_ID;
    let text = format!(
        r#"
account = [{{ id = "{ACCOUNT}", name = "acme" }}, {{ id = "{OTHER_ACCOUNT}", name = "other" }}]
[[pool]]
id = "partners"
account = "acme"
kind = "leased"
addresses = ["{first}"]
[[pool]]
id = "second"
account = "acme"
addresses = ["{second}"]
[[pool]]
id = "theirs"
account = "other"
addresses = ["203.0.113.77"]
[[zone]]
id = "{zone}"
name = "shop.example"
account = "acme"
sources = ["10.1.0.0/24"]
[[zone]]
id = "{FILED_ZONE}"
name = "filed.example"
account = "acme"
sources = ["10.77.0.0/24"]
[zone.aegis]
enabled = true
pool_id = "second"
[[zone]]
id = "{OTHER_ZONE}"
name = "other.example"
account = "other"
sources = ["10.78.0.0/24"]
"#
    );
    let path = site.gateway.files().resources();
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(site)
}

/// Writes the resources file: two accounts with a zone each, of which the second one's has this name, a pool that nobody
/// uses, and more sections.
///
/// # Errors
/// When it cannot be written.
pub fn two_accounts(site: &Site, theirs: &str, sections: &str) -> Result<()> {
    let text = format!(
        r#"
account = [{{ id = "{ACCOUNT}", name = "acme" }}, {{ id = "{OTHER_ACCOUNT}", name = "other" }}]
[[pool]]
id = "filed"
account = "acme"
addresses = ["198.18.0.9"]
[[zone]]
id = "{ZONE_ID}"
name = "shop.example"
account = "acme"
sources = ["10.1.0.0/24"]
[[zone]]
id = "{OTHER_ZONE}"
name = "{theirs}"
account = "other"
sources = ["10.78.0.0/24"]
{sections}
"#
    );
    let path = site.gateway.files().resources();
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

/// Where something of an account is.
#[must_use]
pub fn of(account: &str, rest: &str) -> String {
    format!("/client/v4/accounts/{account}/{rest}")
}
