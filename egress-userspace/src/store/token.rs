//! API tokens (API-2): who may do what for which accounts. Only a hash of a token is kept.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Characters of a token.
const LENGTH: usize = 40;
/// What a token is written in: 64 characters, so each carries six bits of the kernel's random numbers.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// One thing a token allows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
pub enum Permission {
    /// Read zone settings.
    #[serde(rename = "zone-settings:read")]
    #[value(name = "zone-settings:read")]
    ZoneSettingsRead,
    /// Change zone settings, and read them.
    #[serde(rename = "zone-settings:write")]
    #[value(name = "zone-settings:write")]
    ZoneSettingsWrite,
    /// Read analytics, by GraphQL.
    #[serde(rename = "account-analytics:read")]
    #[value(name = "account-analytics:read")]
    AccountAnalyticsRead,
    /// Read pools, leased IPs and drains.
    #[serde(rename = "account-egress:read")]
    #[value(name = "account-egress:read")]
    AccountEgressRead,
    /// Change them, and read them.
    #[serde(rename = "account-egress:write")]
    #[value(name = "account-egress:write")]
    AccountEgressWrite,
    /// Give accounts addresses, and place them: leased IPs, BYOIP prefixes, placements. The operator's.
    #[serde(rename = "account-addresses:write")]
    #[value(name = "account-addresses:write")]
    AccountAddressesWrite,
    /// Read `/metrics`, which tells of all accounts.
    #[serde(rename = "metrics:read")]
    #[value(name = "metrics:read")]
    MetricsRead,
}

impl Permission {
    /// Whether who has this one may do what `wanted` stands for: writing includes reading.
    pub fn covers(self, wanted: Self) -> bool {
        self == wanted
            || matches!(
                (self, wanted),
                (Self::ZoneSettingsWrite, Self::ZoneSettingsRead)
                    | (Self::AccountEgressWrite, Self::AccountEgressRead)
                    | (Self::AccountAddressesWrite, Self::AccountEgressRead)
            )
    }

    /// Its name on the command line and in answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ZoneSettingsRead => "zone-settings:read",
            Self::ZoneSettingsWrite => "zone-settings:write",
            Self::AccountAnalyticsRead => "account-analytics:read",
            Self::AccountEgressRead => "account-egress:read",
            Self::AccountEgressWrite => "account-egress:write",
            Self::AccountAddressesWrite => "account-addresses:write",
            Self::MetricsRead => "metrics:read",
        }
    }
}

/// A token as it is kept: not the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its id, by which it is revoked.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// What it allows.
    pub permissions: Vec<Permission>,
    /// Ids of the accounts for which it does.
    pub accounts: Vec<String>,
    /// When it was made, µs since 1970.
    pub created: i64,
}

impl Token {
    /// Whether it allows this.
    pub fn allows(&self, wanted: Permission) -> bool {
        self.permissions.iter().any(|held| held.covers(wanted))
    }

    /// Whether it is for this account.
    pub fn is_for(&self, account: &str) -> bool {
        self.accounts.iter().any(|id| id == account)
    }
}

/// A token that was just made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToken {
    /// The secret, told this once.
    pub token: String,
    /// What is kept.
    #[serde(flatten)]
    pub kept: Token,
}

impl NewToken {
    /// Makes a secret of 240 random bits, and an id.
    ///
    /// # Errors
    /// When the kernel has no random numbers yet.
    pub fn make(
        name: String,
        permissions: Vec<Permission>,
        accounts: Vec<String>,
        created: i64,
    ) -> std::io::Result<Self> {
        let secret: [u8; LENGTH] = random()?;
        let id: [u8; 16] = random()?;
        let token = secret
            .iter()
            .map(|byte| char::from(ALPHABET[usize::from(byte & 63)]));
        let id = id.iter().map(|byte| format!("{byte:02x}"));
        Ok(Self {
            token: token.collect(),
            kept: Token {
                id: id.collect(),
                name,
                permissions,
                accounts,
                created,
            },
        })
    }
}

/// What is kept of a secret. It has 240 random bits, so a plain hash is not to be guessed backwards, and looking
/// one up tells nothing by its duration.
pub fn hash_of(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Random bytes of the kernel.
///
/// # Errors
/// When it has none yet.
pub(crate) fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the pointer and the length are those of `bytes`, which lives until the call returns.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    if usize::try_from(got) == Ok(N) {
        Ok(bytes)
    } else {
        Err(std::io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_includes_reading_and_nothing_else() {
        use Permission::*;
        let all = [
            ZoneSettingsRead,
            ZoneSettingsWrite,
            AccountAnalyticsRead,
            AccountEgressRead,
            AccountEgressWrite,
            MetricsRead,
        ];
        for held in all {
            let covered = all.iter().filter(|wanted| held.covers(**wanted)).count();
            let writes = matches!(held, ZoneSettingsWrite | AccountEgressWrite);
            assert_eq!(covered, if writes { 2 } else { 1 }, "{held:?}");
            assert_eq!(serde_json::json!(held), held.name());
        }
        assert!(ZoneSettingsWrite.covers(ZoneSettingsRead));
        assert!(AccountEgressWrite.covers(AccountEgressRead));
    }

    #[test]
    fn secrets_differ_and_are_made_of_token_characters() {
        let make = || NewToken::make(String::new(), Vec::new(), Vec::new(), 0).unwrap();
        let (one, other) = (make(), make());
        assert_ne!(one.token, other.token);
        assert_ne!(one.kept.id, other.kept.id);
        assert_eq!(one.token.len(), LENGTH);
        assert!(one.token.bytes().all(|byte| ALPHABET.contains(&byte)));
        // FIPS 180-2, B.1.
        assert_eq!(hash_of("abc")[..4], [0xba, 0x78, 0x16, 0xbf]);
    }
}
