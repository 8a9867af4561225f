//! Certificates: the server's own, and the authorities of those of clients.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use super::reload::Reloading;
use crate::util::disturbs;

/// The files of TLS.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate, followed by those between it and an authority, as PEM.
    pub cert: PathBuf,
    /// Its key, as PEM.
    pub key: PathBuf,
    /// Authorities whose certificates prove who a client is, as PEM.
    pub client_ca: Option<PathBuf>,
}

/// Reads the files, and again when they change. If `without_certificate`, clients need not have one.
pub(super) fn config(
    files: &TlsFiles,
    without_certificate: bool,
) -> Result<Reloading<ServerConfig>, String> {
    let mut paths = vec![files.cert.clone(), files.key.clone()];
    paths.extend(files.client_ca.clone());
    Reloading::new(paths, move |paths| read(paths, without_certificate))
}

fn read(paths: &[PathBuf], without_certificate: bool) -> Result<ServerConfig, String> {
    let [cert, key, client_ca @ ..] = paths else { return Err("files are missing".into()) };
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS: {e}"))?;
    let builder = match client_ca.first() {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority).map_err(|e| format!("{}: {e}", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match without_certificate {
                true => verifier.allow_unauthenticated(),
                false => verifier,
            };
            let verifier = verifier.build().map_err(|e| format!("{}: {e}", path.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let secret =
        PrivateKeyDer::from_pem_file(key).map_err(|e| format!("{}: {e}", key.display()))?;
    let chain = certificates(cert)?;
    let mut config = builder
        .with_single_cert(chain, secret)
        .map_err(|e| format!("{} and {}: {e}", cert.display(), key.display()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |e| format!("{}: {e}", path.display());
    let all = CertificateDer::pem_file_iter(path).map_err(failed)?;
    let all: Result<Vec<_>, _> = all.collect();
    match all.map_err(failed)? {
        all if all.is_empty() => Err(format!("{}: there is no certificate in it", path.display())),
        all => Ok(all),
    }
}

/// The common name that a certificate states for whom it was issued, which has been verified; a name with `:`, or
/// with what is no printable text, is none.
pub(super) fn common_name(certificate: &[u8]) -> Option<String> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut fields, _) = element(certificate, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields, VERSION)?.1;
    }
    // Serial number, algorithm, issuer, validity.
    for tag in [INTEGER, SEQUENCE, SEQUENCE, SEQUENCE] {
        fields = element(fields, tag)?.1;
    }
    let (mut names, _) = element(fields, SEQUENCE)?;
    while !names.is_empty() {
        let (mut set, rest) = element(names, SET)?;
        names = rest;
        while !set.is_empty() {
            let (pair, rest) = element(set, SEQUENCE)?;
            set = rest;
            let (kind, value) = element(pair, OBJECT)?;
            if kind == COMMON_NAME {
                let (tag, _) = value.split_first()?;
                let (text, _) = element(value, *tag)?;
                let text = std::str::from_utf8(text).ok()?;
                let is_name = |c: char| !disturbs(c) && c != ':' && c != ',';
                let is_name = !text.is_empty() && text.chars().all(is_name);
                return is_name.then(|| text.to_owned());
            }
        }
    }
    None
}

const VERSION: u8 = 0xa0;
const INTEGER: u8 = 0x02;
const OBJECT: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// Splits off an element of DER with this tag: its content, and what follows.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (&length, rest) = rest.split_first()?;
    if first != tag {
        return None;
    }
    let (length, rest) = match length {
        length @ 0..=0x7f => (usize::from(length), rest),
        count @ 0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(count - 0x80))?;
            (digits.iter().fold(0, |length, &digit| length << 8 | usize::from(digit)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// Entry point of the fuzz targets.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(bytes: &[u8]) {
    let _ = common_name(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_certificates() {
        let issue = |name: Option<&str>| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(["host.test".to_owned()]).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::OrganizationName, "Example");
            if let Some(name) = name {
                params.distinguished_name.push(rcgen::DnType::CommonName, name);
            }
            params.self_signed(&key).unwrap().der().to_vec()
        };
        let der = issue(Some("node-7"));
        assert_eq!(common_name(&der).as_deref(), Some("node-7"));
        assert_eq!(common_name(&issue(None)), None);
        assert_eq!(common_name(&issue(Some("a:b"))), None);
        for cut in 0..der.len().min(300) {
            assert_eq!(common_name(&der[..cut]), None);
        }
    }
}
