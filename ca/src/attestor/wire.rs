//! Proofs on the wire, bounded before anything looks at them.

use bonafide_proto::convert::Malformed;
use bonafide_proto::token::Secret;
use bonafide_proto::wire::authority as wire;

use super::x509pop::{CERTIFICATE_MAX, CHAIN_MAX, SIGNATURE_MAX, Shown, Signed};
use super::{Answer, Challenge, Evidence};

fn bad<T>(what: &str) -> Result<T, Malformed> {
    Err(Malformed(what.to_owned()))
}

impl TryFrom<wire::Evidence> for Evidence {
    type Error = Malformed;
    fn try_from(w: wire::Evidence) -> Result<Self, Malformed> {
        use wire::evidence::Of;
        match w.of {
            Some(Of::TokenSecret(secret)) => {
                let secret = zeroize::Zeroizing::new(secret);
                Secret::try_from(secret.as_slice()).map(Self::Token).or_else(|_| bad("a secret has 32 bytes"))
            }
            Some(Of::X509pop(wire::X509Pop { chain, nonce })) => {
                if chain.len() > CHAIN_MAX || chain.iter().any(|one| one.len() > CERTIFICATE_MAX) {
                    return bad("the chain is too long or too large");
                }
                let nonce = nonce.as_slice().try_into().or_else(|_| bad("a nonce has 32 bytes"))?;
                Ok(Self::X509Pop(Shown { chain: chain.into_iter().map(Into::into).collect(), nonce }))
            }
            None => bad("there is no proof of a kind that is known here"),
        }
    }
}

impl From<&Evidence> for wire::Evidence {
    fn from(evidence: &Evidence) -> Self {
        use wire::evidence::Of;
        Self {
            of: Some(match evidence {
                Evidence::Token(secret) => Of::TokenSecret(secret.bytes().to_vec()),
                Evidence::X509Pop(Shown { chain, nonce }) => Of::X509pop(wire::X509Pop {
                    chain: chain.iter().map(|one| one.to_vec()).collect(),
                    nonce: nonce.to_vec(),
                }),
            }),
        }
    }
}

impl TryFrom<wire::Challenge> for Challenge {
    type Error = Malformed;
    fn try_from(w: wire::Challenge) -> Result<Self, Malformed> {
        match w.of {
            Some(wire::challenge::Of::X509popNonce(nonce)) => {
                nonce.as_slice().try_into().map(Self::X509Pop).or_else(|_| bad("a nonce has 32 bytes"))
            }
            None => bad("the challenge is of no kind that is known here"),
        }
    }
}

impl From<&Challenge> for wire::Challenge {
    fn from(challenge: &Challenge) -> Self {
        let Challenge::X509Pop(nonce) = challenge;
        Self { of: Some(wire::challenge::Of::X509popNonce(nonce.to_vec())) }
    }
}

impl TryFrom<wire::Answer> for Answer {
    type Error = Malformed;
    fn try_from(w: wire::Answer) -> Result<Self, Malformed> {
        match w.of {
            Some(wire::answer::Of::X509pop(wire::X509PopSigned { scheme, signature })) => {
                let scheme = u16::try_from(scheme).or_else(|_| bad("a signature scheme has two bytes"))?;
                if signature.len() > SIGNATURE_MAX {
                    return bad("a signature is too large");
                }
                Ok(Self::X509Pop(Signed { scheme, signature }))
            }
            None => bad("the answer is of no kind that is known here"),
        }
    }
}

impl From<&Answer> for wire::Answer {
    fn from(answer: &Answer) -> Self {
        let Answer::X509Pop(Signed { scheme, signature }) = answer;
        let signed = wire::X509PopSigned { scheme: u32::from(*scheme), signature: signature.clone() };
        Self { of: Some(wire::answer::Of::X509pop(signed)) }
    }
}
