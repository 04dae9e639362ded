//! The document is whole.

use super::*;

#[test]
fn every_operation_says_its_role_and_every_route_is_described() {
    let document = document();
    let paths = document["paths"].as_object().unwrap();
    let described = paths.iter().flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().iter();
        methods.filter(|(m, _)| *m != "parameters").map(move |(m, operation)| (path, m, operation))
    });
    for (path, method, operation) in described {
        let is = |r: &&crate::daemon::serve::api::Route| {
            r.path == path && r.method.eq_ignore_ascii_case(method)
        };
        let route = TABLE.iter().find(is).unwrap_or_else(|| panic!("no route {method} {path}"));
        let role = route.need.role().unwrap().name();
        assert_eq!(operation["x-role"], role, "{method} {path}");
        let text = operation["description"].as_str().unwrap();
        assert!(text.contains(&format!("'{role}'")), "{method} {path}: {text}");
    }
    for route in TABLE {
        let operation = &document["paths"][route.path][route.method.to_lowercase()];
        let api = matches!(route.need, Need::Api(_) | Need::Socket);
        assert_eq!(operation.is_object(), api, "{} {}", route.method, route.path);
    }
}

#[test]
fn references_lead_somewhere_and_statuses_are_described() {
    let document = document();
    let text = document.to_string();
    for part in text.split("#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
    assert!(!text.contains("\"Refused\""));
    // Only the document itself may be anything.
    assert_eq!(text.matches("#/components/schemas/Any\"").count(), 1);
    let ids: Vec<_> = text.split("\"operationId\":").skip(1).map(|t| t.split(',').next()).collect();
    let distinct: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
}
