//! What goes wrong in an object store, in the words of this floor.

use object_store::Error;

use crate::backend::{Kind, registry::root_cause};

/// What the error says, once.
pub(super) fn text(error: &Error) -> String {
    // The deepest cause may say less than what is around it.
    let (whole, cause) = (error.to_string(), root_cause(error));
    let text = if whole.contains(&cause) { whole } else { format!("{whole}: {cause}") };
    text.chars().filter(|c| !crate::util::disturbs(*c)).take(500).collect()
}

/// Where credentials come from.
const ENVIRONMENT: &str = "they come from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
    GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or the identity of the \
    machine)";

/// Whom a machine in a cloud asks for its identity, and what is said where not even an account is known.
const ASKED_FOR_IDENTITY: [&str; 3] =
    ["169.254.169.254", "metadata.google.internal", "Account must be specified"];

/// The cause.
pub(super) fn kind(error: &Error) -> Kind {
    match error {
        Error::NotFound { .. } => Kind::NotFound(String::new()),
        Error::Unauthenticated { .. } => Kind::Config(format!(
            "the credentials are not accepted: {}; {ENVIRONMENT}",
            text(error)
        )),
        Error::Generic { .. } if ASKED_FOR_IDENTITY.iter().any(|who| text(error).contains(who)) => {
            Kind::Config(format!("there are no credentials: {}; {ENVIRONMENT}", text(error)))
        }
        Error::PermissionDenied { .. } => Kind::Denied(text(error)),
        Error::InvalidPath { .. }
        | Error::NotSupported { .. }
        | Error::NotImplemented { .. }
        | Error::UnknownConfigurationKey { .. } => Kind::Config(text(error)),
        Error::AlreadyExists { .. } | Error::Precondition { .. } => {
            Kind::InUse("others change it at the same time".to_owned())
        }
        error => Kind::Store(text(error)),
    }
}
