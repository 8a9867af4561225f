//! Scopes of tokens: `repository:team/app:pull,push`.

/// The action of removing something.
const DELETE: &str = "delete";

/// So many scopes of a challenge are read.
pub(super) const MAX_SCOPES: usize = 16;

/// What a challenge asks for beyond the scopes `own` of a request: other resources. What has to be allowed on its
/// own ones, the request knows best; and only who removes something asks to be allowed to do so.
pub(super) fn beyond(own: &[String], challenge: &[String]) -> Vec<String> {
    let removes = own.iter().any(|scope| parts(scope).1.split(',').any(|action| action == DELETE));
    let others = challenge.iter().filter(|scope| {
        let (resource, _) = parts(scope);
        own.iter().all(|own| parts(own).0 != resource)
    });
    let allowed = others.filter_map(|scope| {
        let (resource, actions) = parts(scope);
        let actions = actions.split(',').filter(|action| removes || *action != DELETE);
        let actions = actions.collect::<Vec<_>>().join(",");
        (!actions.is_empty()).then(|| format!("{resource}:{actions}"))
    });
    allowed.collect()
}

/// Whether one of `granted` allows all that `wanted` does.
fn cover(granted: &[String], wanted: &str) -> bool {
    let (resource, actions) = parts(wanted);
    granted.iter().any(|granted| {
        let (own, allowed) = parts(granted);
        own == resource && actions.split(',').all(|action| allowed.split(',').any(|a| a == action))
    })
}

/// Adds those of `more` to `all` that allow something new, and drops what they allow as well.
pub(super) fn add(all: &mut Vec<String>, more: Vec<String>) {
    for scope in more {
        if !cover(all, &scope) {
            all.retain(|known| !cover(std::slice::from_ref(&scope), known));
            all.push(scope);
        }
    }
    all.truncate(MAX_SCOPES);
}

/// The resource, and the actions on it.
fn parts(scope: &str) -> (&str, &str) {
    scope.rsplit_once(':').unwrap_or((scope, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(scopes: &[&str]) -> Vec<String> {
        scopes.iter().map(|scope| (*scope).to_owned()).collect()
    }

    #[test]
    fn what_a_challenge_asks_for_besides() {
        let own = list(&["repository:a/b:pull,push", "repository:c:pull"]);
        let removing = list(&["repository:a/b:pull,delete"]);
        for (own, challenge, expected) in [
            (&own, "repository:a/b:pull", None),
            (&own, "repository:a/b:delete", None),
            (&own, "repository:c:pull,push", None),
            (&own, "repository:real/a/b:pull,push", Some("repository:real/a/b:pull,push")),
            (&own, "repository:real/a/b:delete", None),
            (&own, "repository:real/a/b:pull,delete", Some("repository:real/a/b:pull")),
            (&removing, "repository:real/a/b:delete", Some("repository:real/a/b:delete")),
            (&own, "repository:host:5000/c:pull", Some("repository:host:5000/c:pull")),
            (&own, "anything", None),
        ] {
            let found = beyond(own, &list(&[challenge]));
            assert_eq!(found, list(expected.as_slice()), "{challenge}");
        }
    }

    #[test]
    fn only_what_is_new_is_added() {
        let mut all = list(&["repository:a:pull"]);
        add(&mut all, list(&["repository:a:pull", "repository:b:pull"]));
        assert_eq!(all, list(&["repository:a:pull", "repository:b:pull"]));
        add(&mut all, list(&["repository:a:pull,push"]));
        assert_eq!(all, list(&["repository:b:pull", "repository:a:pull,push"]));
        add(&mut all, (0..100).map(|n| format!("repository:r{n}:pull")).collect());
        assert_eq!(all.len(), MAX_SCOPES);
    }
}
