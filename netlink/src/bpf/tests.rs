use std::os::fd::AsFd;

use super::{Helper::*, If::*, Reg::*, Size::*, *};

const COUNTS: MapSpec = MapSpec {
    name: "weft_test_counts",
    kind: MapKind::Hash,
    key: 4,
    value: 8,
    entries: 100,
};

fn map(spec: MapSpec) -> Option<Map> {
    Map::create(spec)
        .inspect_err(|error| crate::testing::skip(error))
        .ok()
}

#[test]
fn maps_keep_what_they_are_given() {
    let Some(counts) = map(COUNTS) else { return };
    let keys: Vec<u8> = (0..50u32).flat_map(u32::to_ne_bytes).collect();
    let values: Vec<u8> = (0..50u64).flat_map(u64::to_ne_bytes).collect();
    counts.set_all(&keys, &values).unwrap();
    counts.set(&0u32.to_ne_bytes(), &1u64.to_ne_bytes()).unwrap();
    assert_eq!(
        counts.get(&7u32.to_ne_bytes()).unwrap().unwrap(),
        7u64.to_ne_bytes()
    );
    assert_eq!(counts.get(&77u32.to_ne_bytes()).unwrap(), None);
    counts.delete(&7u32.to_ne_bytes()).unwrap();
    counts.delete(&7u32.to_ne_bytes()).unwrap();
    assert_eq!(counts.entries().unwrap().len(), 49);
}

#[test]
fn pins_keep_maps_alive_and_go_without_a_trace() {
    let Some(counts) = map(COUNTS) else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("bpf");
    assert!(Pins::find(&dir).is_none());
    let pins = Pins::mount(&dir).unwrap();
    pins.pin("counts", &counts).unwrap();
    counts.set(&[1; 4], &[2; 8]).unwrap();
    drop((counts, pins));

    let pins = Pins::find(&dir).unwrap();
    assert_eq!(pins.names().unwrap(), ["counts"]);
    let other = MapSpec { value: 16, ..COUNTS };
    assert!(
        pins.map("counts", other).unwrap().is_none(),
        "one of another shape is not adopted"
    );
    assert!(pins.map("absent", COUNTS).unwrap().is_none());
    let counts = pins.map("counts", COUNTS).unwrap().unwrap();
    assert_eq!(counts.get(&[1; 4]).unwrap().unwrap(), [2; 8]);
    pins.rename("counts", "others").unwrap();
    assert_eq!(pins.names().unwrap(), ["others"]);
    pins.unmount().unwrap();
    assert!(!dir.exists());
}

#[test]
fn a_program_that_the_verifier_refuses_is_an_error_that_says_where() {
    let Some(counts) = map(COUNTS) else { return };
    let mut asm = Asm::new();
    asm.store(W, R10, -4, 0)
        .set(R2, R10)
        .calc(Op::Add, R2, -4)
        .set_map(R1, 0)
        .call(MapLookupElem)
        .load(D, R0, R0, 0)
        .exit();
    let error = asm
        .finish()
        .load("weft_test", Attach::Connect4, &[&counts])
        .unwrap_err();
    assert!(error.source.to_string().contains("map_value_or_null"), "{error}");
}

#[test]
fn a_program_is_attached_for_as_long_as_its_link_and_replaced_in_place() {
    let Some(counts) = map(COUNTS) else { return };
    let pass = || {
        let mut asm = Asm::new();
        let end = asm.label();
        asm.jump_if(Equal, R1, 0, end).bind(end).set(R0, 1).exit();
        asm.finish()
            .load("weft_test", Attach::Release, &[&counts])
            .unwrap()
    };
    let Ok(cgroup) =
        std::fs::File::open("/sys/fs/cgroup/unified").or_else(|_| std::fs::File::open("/sys/fs/cgroup"))
    else {
        return;
    };
    let link = pass().attach(cgroup.as_fd()).unwrap();
    pass().replace_at(&link).unwrap();
}
