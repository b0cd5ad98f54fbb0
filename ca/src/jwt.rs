//! JWT-SVIDs: the authority signs them, for members, by keys that follow from the root key and the time.
//!
//! Each week has its key: HKDF-SHA256 of the root's private key, over the trust domain and the number of the week. So all
//! authorities that have the root key have the same one without asking each other, nothing more has to be kept, backed up or
//! restored, and who learns a week's key learns no other. What is published are the keys of this week, of the one
//! before (whose tokens have not all expired when it ends) and of the next one, a week before it is used.

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use bonafide_proto::fingerprint::Digest;
use bonafide_proto::jwt::{JwtKey, joined, signed_part};
use bonafide_proto::name::{SpiffeId, TrustDomain, WorkloadName};
use ring::hkdf;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use zeroize::Zeroizing;

use crate::key::{KeyError, TokenSecret};

/// How long one key signs, seconds.
const WEEK: i64 = 7 * 86_400;
/// How long a token lasts, seconds.
pub const JWT_TTL: i64 = 300;
/// A number is no key once in 2^32 times.
const ATTEMPTS: u8 = 4;
const SCALAR_LEN: usize = 32;

/// A token that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtOrder {
    /// Whom it shall name.
    pub workload: WorkloadName,
    /// For whom.
    pub audiences: Vec<String>,
    /// By what the program is known: none of it may be in quarantine.
    pub digests: Vec<Digest>,
}

/// The keys that are published at that time, unix seconds: of the week before, of this one and of the next.
///
/// # Errors
/// [`KeyError`].
pub(crate) fn published(secret: &TokenSecret, domain: &TrustDomain, now: i64) -> Result<Vec<JwtKey>, KeyError> {
    let week = now.div_euclid(WEEK);
    (week - 1..=week + 1).map(|week| Ok(Signing::of(secret, domain, week)?.public)).collect()
}

/// A token by this week's key.
///
/// # Errors
/// [`KeyError`].
pub(crate) fn sign(secret: &TokenSecret, domain: &TrustDomain, order: &JwtOrder, now: i64) -> Result<String, KeyError> {
    let signing = Signing::of(secret, domain, now.div_euclid(WEEK))?;
    let id = SpiffeId::workload(domain, &order.workload);
    let signed = signed_part(&signing.public, &id, &order.audiences, (now, now.saturating_add(JWT_TTL)));
    let signature = signing.pair.sign(&SystemRandom::new(), signed.as_bytes()).map_err(|_| KeyError::Generate)?;
    Ok(joined(&signed, signature.as_ref()))
}

struct Signing {
    pair: EcdsaKeyPair,
    public: JwtKey,
}

impl Signing {
    fn of(secret: &TokenSecret, domain: &TrustDomain, week: i64) -> Result<Self, KeyError> {
        let (week, random) = (week.to_be_bytes(), SystemRandom::new());
        for attempt in 0..ATTEMPTS {
            let mut scalar = Zeroizing::new([0; SCALAR_LEN]);
            let told = [domain.as_str().as_bytes(), &week, &[attempt]];
            let filled = secret.0.expand(&told, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(scalar.as_mut_slice()));
            filled.map_err(|_| KeyError::Generate)?;
            let private = PrivateKey::from_private_key(&ECDH_P256, scalar.as_slice());
            let Ok(public) = private.map_err(drop).and_then(|key| key.compute_public_key().map_err(drop)) else {
                continue;
            };
            let (algorithm, point) = (&ECDSA_P256_SHA256_FIXED_SIGNING, public.as_ref());
            let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, scalar.as_slice(), point, &random);
            let public = JwtKey::new(point.to_vec()).map_err(|_| KeyError::Malformed)?;
            return Ok(Self { pair: pair.map_err(|_| KeyError::Malformed)?, public });
        }
        Err(KeyError::Generate)
    }
}

#[cfg(test)]
mod tests {
    use bonafide_proto::jwt::{JwtBundle, JwtError};

    use super::*;
    use crate::key::Key;

    fn domain() -> TrustDomain {
        "example.org".parse().unwrap()
    }

    fn order() -> JwtOrder {
        JwtOrder { workload: "shop/web".parse().unwrap(), audiences: vec!["db".into()], digests: Vec::new() }
    }

    #[test]
    fn every_authority_of_a_root_key_signs_by_the_same_keys_and_no_other_does() {
        let (key, other) = (Key::generate().unwrap(), TokenSecret::of(&Key::generate().unwrap()));
        let again = TokenSecret::of(&Key::from_pkcs8(Zeroizing::new(key.pkcs8().to_vec())).unwrap());
        let root = TokenSecret::of(&key);
        let keys = published(&root, &domain(), WEEK).unwrap();
        assert_eq!(keys, published(&again, &domain(), WEEK).unwrap());
        let bundle = JwtBundle::new(domain(), keys.clone()).unwrap();
        assert!(bundle.verify(&sign(&again, &domain(), &order(), WEEK).unwrap(), "db", WEEK).is_ok());
        let foreign = sign(&other, &domain(), &order(), WEEK).unwrap();
        assert_eq!(bundle.verify(&foreign, "db", WEEK), Err(JwtError::Key(domain())));
        assert!(published(&root, &"other.org".parse().unwrap(), WEEK).unwrap().iter().all(|key| !keys.contains(key)));
    }

    #[test]
    fn a_key_is_published_a_week_before_it_signs_and_for_as_long_as_its_tokens_last() {
        let root = TokenSecret::of(&Key::generate().unwrap());
        let at = |now: i64| JwtBundle::new(domain(), published(&root, &domain(), now).unwrap()).unwrap();
        let turn = 100 * WEEK;
        let last = sign(&root, &domain(), &order(), turn - 1).unwrap();
        let first = sign(&root, &domain(), &order(), turn).unwrap();
        assert!(at(turn - WEEK).verify(&first, "db", turn).is_ok(), "by whoever has not asked since");
        assert!(at(turn + JWT_TTL).verify(&last, "db", turn + JWT_TTL - 1).is_ok());
        assert!(matches!(at(turn + WEEK).verify(&last, "db", turn), Err(JwtError::Key(_))), "nobody needs it any more");
    }

    #[test]
    fn a_token_lasts_five_minutes() {
        let root = TokenSecret::of(&Key::generate().unwrap());
        let bundle = JwtBundle::new(domain(), published(&root, &domain(), WEEK).unwrap()).unwrap();
        let token = sign(&root, &domain(), &order(), WEEK).unwrap();
        assert_eq!(bundle.verify(&token, "db", WEEK).unwrap().expires, WEEK + JWT_TTL);
    }
}
