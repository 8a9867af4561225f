//! A private certificate authority and what it signs.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::path::{Path, PathBuf};

/// A certificate authority of one test.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// PEM texts of a certificate and its key.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Pair {
    /// Writes `NAME.pem` and `NAME.key`.
    pub(crate) fn write(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        let certificate = directory.join(format!("{name}.pem"));
        let key = directory.join(format!("{name}.key"));
        std::fs::write(&certificate, &self.certificate).expect("writing a certificate");
        std::fs::write(&key, &self.key).expect("writing a key");
        (certificate, key)
    }
}

/// What is wrong with a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Certificate {
    Good,
    /// For another name than 127.0.0.1 and localhost.
    WrongHost,
    Expired,
    /// Signed by itself and marked as an authority, as `openssl req -x509` makes them.
    SelfSigned,
    /// The same for another name.
    SelfSignedForAnother,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("making a key");
        let certificate = params.self_signed(&key).expect("signing its own certificate");
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    pub(crate) fn write(&self, directory: &Path, name: &str) -> PathBuf {
        let path = directory.join(format!("{name}.pem"));
        std::fs::write(&path, &self.pem).expect("writing a certificate");
        path
    }

    pub(crate) fn server(&self, kind: Certificate) -> Pair {
        let names: &[&str] = match kind {
            Certificate::WrongHost | Certificate::SelfSignedForAnother => &["registry.example"],
            _ => &["localhost", "127.0.0.1"],
        };
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
                .expect("the names are valid");
        if kind == Certificate::Expired {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }
        if matches!(kind, Certificate::SelfSigned | Certificate::SelfSignedForAnother) {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().expect("making a key");
            let certificate = params.self_signed(&key).expect("signing its own certificate");
            return Pair { certificate: certificate.pem(), key: key.serialize_pem() };
        }
        self.sign(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    pub(crate) fn client(&self, name: &str) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        self.sign(params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, mut params: CertificateParams, purpose: ExtendedKeyUsagePurpose) -> Pair {
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().expect("making a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signing a certificate");
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}
