use super::*;

#[test]
fn an_origin_record_prints_the_json_scripts_rely_on() {
    let record = OriginRecord {
        egress_ip: "192.0.2.10".parse().unwrap(),
        origin: "203.0.113.5:443".parse().unwrap(),
        protocol: Protocol::Tcp,
        active: 20_000,
        peak: 20_001,
        capacity: 40_000,
        utilization: utilization(20_000, 40_000),
        refused: 3,
    };
    assert_eq!(
        serde_json::to_string(&record).unwrap(),
        r#"{"egress_ip":"192.0.2.10","origin":"203.0.113.5:443","protocol":"tcp","active":20000,"peak":20001,"capacity":40000,"utilization":50.0,"refused":3}"#
    );
}

#[test]
fn a_flow_record_prints_the_json_scripts_rely_on() {
    let record = FlowRecord {
        protocol: Protocol::Udp,
        inside: "10.1.0.2:5353".parse().unwrap(),
        egress: "192.0.2.10:5353".parse().unwrap(),
        origin: "203.0.113.5:53".parse().unwrap(),
        zone: "shop.example".into(),
        pool: "partners".into(),
        state: "established".into(),
        age_s: 1,
        idle_s: 2,
        packets_out: 3,
        packets_in: 4,
        bytes_out: 5,
        bytes_in: 6,
        path: "local".into(),
    };
    let json = serde_json::to_string(&record).unwrap();
    assert_eq!(
        json,
        r#"{"protocol":"udp","inside":"10.1.0.2:5353","egress":"192.0.2.10:5353","origin":"203.0.113.5:53","zone":"shop.example","pool":"partners","state":"established","age_s":1,"idle_s":2,"packets_out":3,"packets_in":4,"bytes_out":5,"bytes_in":6,"path":"local"}"#
    );
}

#[test]
fn utilization_is_percent_and_a_capacity_of_zero_is_full() {
    assert_eq!(utilization(0, 40_000), 0.0);
    assert_eq!(utilization(40_000, 40_000), 100.0);
    assert_eq!(utilization(1, 40_000), 0.0025);
    assert_eq!(utilization(0, 0), 100.0);
}
