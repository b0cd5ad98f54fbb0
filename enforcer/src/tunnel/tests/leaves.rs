use bonafide_proto::svid::SvidError;

use super::super::testing::{LEAF_TTL, Mesh, T0, leaf_params};
use super::super::{Leaf, LeafError};

#[test]
fn a_leaf_is_made_only_of_what_our_own_verifier_accepts() {
    let (mesh, other) = (Mesh::new("example.org"), Mesh::new("example.org"));
    let good = || mesh.shown(&leaf_params("example.org", "shop/web"));
    let make = |chain, key, name: &str| Leaf::new(chain, key, &mesh.id(name), &mesh.trust());

    let leaf = make(good().chain, good().key, "shop/web");
    assert!(matches!(leaf, Err(LeafError::Key(_))), "a foreign key was taken: {leaf:?}");
    let leaf = make(good().chain, good().key, "shop/db");
    assert!(matches!(leaf, Err(LeafError::Name { .. })), "another's name was taken: {leaf:?}");
    let stranger = other.shown(&leaf_params("example.org", "shop/web"));
    let leaf = make(stranger.chain, stranger.key, "shop/web");
    assert!(matches!(leaf, Err(LeafError::Svid(SvidError::Path(_)))), "an unknown root was taken: {leaf:?}");
    let fine = good();
    let leaf = make(fine.chain, fine.key, "shop/web").unwrap();
    assert_eq!((leaf.not_after(), leaf.half_life()), (T0 + LEAF_TTL, T0 + LEAF_TTL / 2));
    assert_eq!(leaf.workload(), &mesh.id("shop/web"));
}

#[test]
fn the_key_is_not_in_debug_output() {
    let mesh = Mesh::new("example.org");
    let text = format!("{:?}", mesh.leaf("shop/web"));
    assert!(text.contains("shop/web") && !text.contains("certified") && text.len() < 600, "{text}");
}
