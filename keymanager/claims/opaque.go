package claims

// OpaqueConsumerKey is ConsumerKey for an answer of an introspection, where the client is client_id unless a name is given
// and found (RFC 7662 2.2).
func OpaqueConsumerKey(mapped, raw map[string]any, name string) string {
	if name != "" {
		if k := firstText(name, mapped, raw); k != "" {
			return k
		}
	}
	if k := firstText("client_id", mapped, raw); k != "" {
		return k
	}
	return ConsumerKey(mapped, raw, "")
}

// OpaqueUser is User for an answer of an introspection, which names the user in username (RFC 7662 2.2), else in sub.
func OpaqueUser(mapped map[string]any) string {
	for _, name := range [...]string{EndUser, "enduser", "username", "sub"} {
		if s := text(mapped[name]); s != "" {
			return s
		}
	}
	return ""
}
