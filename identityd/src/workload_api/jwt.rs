//! The JWT-SVID profile: tokens, asked of the CA and remembered for half of their lives; the keys by which they are checked.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bonafide_proto::clock::SharedClock;
use bonafide_proto::jwt::Proven;
use bonafide_proto::name::SpiffeId;
use bonafide_proto::refusal::{AttestReason, AttestRefusal};
use bonafide_proto::wire::workload_endpoint::{JwtBundlesResponse, ValidateJwtsvidResponse};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::Value as Json;

use super::Entitled;
use super::subscription::Told;
use super::svids::Subject;
use super::trust::Trust;
use crate::bundle::Authority;

/// The most that are remembered; beyond that the CA is asked each time.
const REMEMBERED_MAX: usize = 4096;

/// All of them.
#[derive(Debug)]
pub(super) struct Tokens {
    remembered: Mutex<HashMap<(Subject, Vec<String>), Remembered>>,
    authority: Authority,
    clock: SharedClock,
}

#[derive(Clone)]
struct Remembered {
    token: String,
    /// Half of its life is over then, unix seconds.
    until: i64,
}

impl std::fmt::Debug for Remembered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remembered").field("until", &self.until).finish_non_exhaustive()
    }
}

impl Tokens {
    pub(super) fn new(authority: Authority, clock: SharedClock) -> Self {
        Self { remembered: Mutex::default(), authority, clock }
    }

    /// One that this caller may show to those audiences.
    ///
    /// # Errors
    /// The CA's own refusal, or why what it gave is not fit to be shown.
    pub(super) async fn get(
        &self,
        entitled: &Entitled,
        trust: &Trust,
        audiences: &[String],
    ) -> Result<String, AttestRefusal> {
        let about = (Subject::of(entitled), audiences.to_vec());
        if let Some(token) = self.remembered(&about) {
            return Ok(token);
        }
        let issued = self.authority.issue_jwt(&entitled.workload, &entitled.fingerprint, audiences.to_vec()).await?;
        let expires = self.fit(&issued, entitled, trust, audiences)?;
        let now = self.clock.unix();
        self.remember(about, Remembered { token: issued.clone(), until: now + (expires - now) / 2 });
        Ok(issued)
    }

    /// Checked as whoever it is shown to checks it.
    fn fit(&self, token: &str, to: &Entitled, trust: &Trust, audiences: &[String]) -> Result<i64, AttestRefusal> {
        let unfit = |why: String| {
            AttestRefusal::new(AttestReason::CheckerRefused, format!("the token for {} is not fit: {why}", to.workload))
        };
        let audience = audiences.first().map(String::as_str).unwrap_or_default();
        let proven = trust.jwt.verify(token, audience, self.clock.unix()).map_err(|e| unfit(e.to_string()))?;
        match proven.id == SpiffeId::workload(trust.jwt.trust_domain(), &to.workload) {
            true => Ok(proven.expires),
            false => Err(unfit(format!("it names {}", proven.id))),
        }
    }

    fn remembered(&self, about: &(Subject, Vec<String>)) -> Option<String> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(about).filter(|token| self.clock.unix() < token.until).map(|token| token.token.clone())
    }

    fn remember(&self, about: (Subject, Vec<String>), token: Remembered) {
        let (now, mut remembered) = (self.clock.unix(), self.remembered.lock().unwrap_or_else(PoisonError::into_inner));
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, token| now < token.until);
        }
        if remembered.len() < REMEMBERED_MAX {
            remembered.insert(about, token);
        }
    }
}

/// The keys of our own trust domain, as a set of JWKs.
pub(super) fn bundles(told: &Told) -> JwtBundlesResponse {
    let keys = serde_json::json!({ "keys": told.trust.jwt.jwks().collect::<Vec<_>>() });
    JwtBundlesResponse { bundles: [(told.trust.id(), keys.to_string().into_bytes())].into() }
}

/// What a token proves, in the words of protobuf.
pub(super) fn validated(proven: Proven) -> ValidateJwtsvidResponse {
    let claims = Struct { fields: proven.claims.into_iter().map(|(name, claim)| (name, value(claim))).collect() };
    ValidateJwtsvidResponse { spiffe_id: proven.id.to_string(), claims: Some(claims) }
}

fn value(json: Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(truth) => Kind::BoolValue(truth),
        // Protobuf has no other numbers.
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(values) => Kind::ListValue(ListValue { values: values.into_iter().map(value).collect() }),
        Json::Object(fields) => {
            Kind::StructValue(Struct { fields: fields.into_iter().map(|(name, field)| (name, value(field))).collect() })
        }
    };
    Value { kind: Some(kind) }
}
