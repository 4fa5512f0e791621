package event

import "testing"

func BenchmarkDecode(b *testing.B) {
	byName := map[string]sample{}
	for _, s := range samples(b) {
		byName[s.Name] = s
	}
	for _, c := range []struct{ name, sample string }{
		{"decision/text", "throttleData-decision-subscription"},
		{"decision/map", "throttleData-map-decision"},
		{"decision with conditions/text", "throttleData-decision-resource-condition"},
		{"subscription/text", "notification-subscriptions-create"},
		{"subscription/map", "notification-map-subscriptions-create"},
		{"revocation/text", "tokenRevocation-jwt"},
		{"key manager/text", "keyManager-add-4.1"},
	} {
		b.Run(c.name, func(b *testing.B) {
			m := byName[c.sample].message(b)
			b.SetBytes(int64(len(m.Body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Decode(m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
