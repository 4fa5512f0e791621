// Package jwt takes a signed token apart strictly and checks it: its form, its signature with a given key, its times and
// its audience. It chooses no key and knows no issuer.
//
// Everything a caller sends is refused unless it is exactly what RFC 7515 and 7519 describe: base64url without padding or
// stray bits, members once, types as registered. The signature methods are those of golang-jwt.
package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"gatehouse/keymanager"
)

// MaxSize is the longest token that is looked at, in bytes.
const MaxSize = 16 << 10

// DefaultSkew is the leeway of the time checks where a key manager sets none; MaxSkew is the most it may set.
const (
	DefaultSkew = 5 * time.Second
	MaxSkew     = 300 * time.Second
)

// Token is a token that was taken apart and is not yet verified.
type Token struct {
	Algorithm string
	// KeyID is the member kid; an empty one counts as none.
	KeyID string
	// X5T and X5TS256 are thumbprints as written, base64url.
	X5T, X5TS256 string
	Issuer       string
	// Claims is the payload; numbers are json.Number.
	Claims map[string]any

	signed    string // header.payload
	signature []byte
	rawSig    string
}

// SignaturePart is the third part of the token as written.
func (t *Token) SignaturePart() string { return t.rawSig }

var b64 = base64.RawURLEncoding.Strict()

func refuse(c keymanager.Check, format string, args ...any) *keymanager.Refusal {
	return &keymanager.Refusal{Check: c, Detail: fmt.Sprintf(format, args...)}
}

// Parse takes an access token apart. A refusal of check opaque means that it is no JWT at all: not three parts, or the
// first of them not the header of one (gateway-behaviour.md 5).
func Parse(raw string) (*Token, *keymanager.Refusal) {
	return ParseAs(raw, MaxSize, accessToken)
}

// ParseAs is Parse for a token of another purpose: no longer than max bytes, and of the type that the function accepts; a
// token without a type (typ) is of the type "".
func ParseAs(raw string, max int, accepts func(typ string) bool) (*Token, *keymanager.Refusal) {
	if len(raw) > max {
		return nil, refuse(keymanager.CheckSize, "the token has %d bytes, more than %d", len(raw), max)
	}
	head, rest, ok := strings.Cut(raw, ".")
	body, sig, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || strings.IndexByte(sig, '.') >= 0 {
		return nil, refuse(keymanager.CheckOpaque, "not a JWT, and no key manager introspects it")
	}
	hb, err := b64.DecodeString(head)
	if err != nil || strings.ContainsAny(head, "\r\n") {
		return nil, refuse(keymanager.CheckOpaque, "not a JWT, and no key manager introspects it")
	}
	// A header that is not even an object with alg makes it opaque; one that is, but wrong, makes it a bad JWT.
	header, err := decodeObject(hb)
	if errors.Is(err, errNoObject) || err == nil && header["alg"] == nil {
		return nil, refuse(keymanager.CheckOpaque, "not a JWT, and no key manager introspects it")
	}
	if err != nil {
		return nil, refuse(keymanager.CheckFormat, "the header %v", err)
	}
	t := &Token{signed: raw[:len(head)+1+len(body)], rawSig: sig}
	if r := t.readHeader(header, accepts); r != nil {
		return nil, r
	}
	pb, err := decodePart(body)
	if err != nil {
		return nil, refuse(keymanager.CheckFormat, "the payload %v", err)
	}
	if t.signature, err = decodePart(sig); err != nil {
		return nil, refuse(keymanager.CheckFormat, "the signature %v", err)
	}
	if t.Claims, err = decodeObject(pb); err != nil {
		return nil, refuse(keymanager.CheckFormat, "the payload %v", err)
	}
	iss, ok := t.Claims["iss"].(string)
	if !ok || iss == "" {
		return nil, refuse(keymanager.CheckIssuer, "the token names no issuer")
	}
	t.Issuer = iss
	return t, nil
}

func decodePart(s string) ([]byte, error) {
	// The decoder of the standard library skips line ends; a token has none.
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("has a line end in it")
	}
	if strings.IndexByte(s, '=') >= 0 {
		return nil, errors.New("is padded, which base64url in a token is not")
	}
	b, err := b64.DecodeString(s)
	if err != nil {
		return nil, errors.New("is not base64url")
	}
	return b, nil
}

func (t *Token) readHeader(h map[string]any, accepts func(string) bool) *keymanager.Refusal {
	alg, isText := h["alg"].(string)
	if !isText {
		return refuse(keymanager.CheckAlgorithm, "the header names no algorithm")
	}
	t.Algorithm = alg
	if _, crit := h["crit"]; crit {
		return refuse(keymanager.CheckFormat, "the header asks for extensions (crit) that are not supported")
	}
	if v, has := h["b64"]; has {
		return refuse(keymanager.CheckFormat, "the header member b64 (%v) is not supported", v == true)
	}
	if v, has := h["zip"]; has && v != nil {
		return refuse(keymanager.CheckFormat, "the token is compressed")
	}
	v, has := h["typ"]
	typ, ok := v.(string)
	if has && (!ok || typ == "") || !accepts(typ) {
		return refuse(keymanager.CheckFormat, "the type %s (typ) is not the one that is expected here", quote(fmt.Sprint(v)))
	}
	if v, has := h["cty"]; has {
		cty, ok := v.(string)
		if !ok || strings.EqualFold(cty, "JWT") || strings.EqualFold(cty, "application/jwt") {
			return refuse(keymanager.CheckFormat, "the token holds another token (cty)")
		}
	}
	for _, m := range [...]struct {
		name string
		to   *string
	}{{"kid", &t.KeyID}, {"x5t", &t.X5T}, {"x5t#S256", &t.X5TS256}} {
		v, has := h[m.name]
		if !has {
			continue
		}
		if *m.to, ok = v.(string); !ok {
			return refuse(keymanager.CheckFormat, "the header member %s is not a text", m.name)
		}
	}
	return nil
}

func accessToken(typ string) bool {
	return typ == "" || strings.EqualFold(typ, "JWT") || strings.EqualFold(typ, "at+jwt") || strings.EqualFold(typ, "application/at+jwt")
}

// methods are the algorithms that can be allowed at all for a key of a key set. none and HS are not among them: a public
// key must never become the secret of an HMAC.
var methods = map[string]jwt.SigningMethod{
	"RS256": jwt.SigningMethodRS256, "RS384": jwt.SigningMethodRS384, "RS512": jwt.SigningMethodRS512,
	"PS256": jwt.SigningMethodPS256, "PS384": jwt.SigningMethodPS384, "PS512": jwt.SigningMethodPS512,
	"ES256": jwt.SigningMethodES256, "ES384": jwt.SigningMethodES384, "ES512": jwt.SigningMethodES512,
	"EdDSA": jwt.SigningMethodEdDSA,
}

// secretMethods need a secret that gateway and issuer share; VerifySecret alone uses them.
var secretMethods = map[string]jwt.SigningMethod{
	"HS256": jwt.SigningMethodHS256, "HS384": jwt.SigningMethodHS384, "HS512": jwt.SigningMethodHS512,
}

// MinSecret is the shortest shared secret, in bytes.
const MinSecret = 32

// CheckSecret says what is wrong with a shared secret: it is short, or the text of a key that others may know.
func CheckSecret(secret string) error {
	switch {
	case len(secret) < MinSecret:
		return fmt.Errorf("its shared secret has %d bytes, fewer than %d", len(secret), MinSecret)
	case strings.Contains(secret, "-----BEGIN"):
		return errors.New("its shared secret is the text of a key or certificate, which is no secret")
	}
	return nil
}

// Secret reports whether the algorithm is one of a shared secret.
func Secret(alg string) bool { return secretMethods[alg] != nil }

// VerifySecret reports whether the signature was made with the shared secret. It is false for every algorithm of a key
// pair, and for a secret that CheckSecret refuses.
func (t *Token) VerifySecret(secret string) bool {
	m := secretMethods[t.Algorithm]
	return m != nil && CheckSecret(secret) == nil && len(t.signature) > 0 && m.Verify(t.signed, t.signature, []byte(secret)) == nil
}

// Supported reports whether the algorithm can be allowed. Names are compared exactly.
func Supported(alg string) bool { return methods[alg] != nil }

// CheckAlgorithm refuses an algorithm that is not supported or not in the list; an empty list allows every supported one.
func CheckAlgorithm(alg string, allowed []string) *keymanager.Refusal {
	return checkAlgorithm(alg, allowed, Supported(alg))
}

// CheckAnyAlgorithm is CheckAlgorithm for an issuer with a shared secret: the algorithms of a secret are supported too.
func CheckAnyAlgorithm(alg string, allowed []string) *keymanager.Refusal {
	return checkAlgorithm(alg, allowed, Supported(alg) || Secret(alg))
}

func checkAlgorithm(alg string, allowed []string, supported bool) *keymanager.Refusal {
	if !supported {
		return refuse(keymanager.CheckAlgorithm, "the algorithm %s is never accepted", quote(alg))
	}
	if len(allowed) == 0 {
		return nil
	}
	if slices.Contains(allowed, alg) {
		return nil
	}
	return refuse(keymanager.CheckAlgorithm, "the algorithm %s is not accepted from this issuer", alg)
}

// Suits reports whether a key is of the type, and for ECDSA the curve, that the algorithm needs.
func Suits(alg string, key crypto.PublicKey) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS")
	case *ecdsa.PublicKey:
		m, ok := methods[alg].(*jwt.SigningMethodECDSA)
		return ok && k.Curve != nil && k.Curve.Params().BitSize == m.CurveBits
	case ed25519.PublicKey:
		return alg == "EdDSA"
	}
	return false
}

// Verify reports whether the signature is that of the key. It is false for a key that does not suit the algorithm.
func (t *Token) Verify(key crypto.PublicKey) bool {
	m := methods[t.Algorithm]
	return m != nil && len(t.signature) > 0 && Suits(t.Algorithm, key) && m.Verify(t.signed, t.signature, key) == nil
}

// Rules are what a key manager demands of the claims.
type Rules struct {
	Skew            time.Duration // 0: DefaultSkew
	AllowMissingExp bool
	Audience        []string // any one is enough; empty: not checked
}

// Times are the registered times of a token in seconds since the epoch, fractions dropped; 0 when absent.
type Times struct {
	IssuedAt, NotBefore, ExpiresAt int64
	// Until is when the token stops being accepted, skew included; the zero time when it never does.
	Until time.Time
}

// CheckClaims checks exp, nbf, iat and aud at the given time, in this order.
func (t *Token) CheckClaims(now time.Time, rules Rules) (Times, *keymanager.Refusal) {
	var times Times
	skew := EffectiveSkew(rules.Skew)
	exp, has, r := t.time("exp", keymanager.CheckExpired)
	switch {
	case r != nil:
		return times, r
	case !has && !rules.AllowMissingExp:
		return times, refuse(keymanager.CheckExpired, "the token has no expiry (exp)")
	case has && !now.Before(at(exp).Add(skew)):
		return times, refuse(keymanager.CheckExpired, "the access token expired at %s", at(exp).UTC().Format(time.RFC3339))
	}
	if has {
		times.ExpiresAt, times.Until = int64(exp), at(exp).Add(skew)
	}
	nbf, has, r := t.time("nbf", keymanager.CheckNotBefore)
	switch {
	case r != nil:
		return times, r
	case has && now.Add(skew).Before(at(nbf)):
		return times, refuse(keymanager.CheckNotBefore, "the token is not valid before %s", at(nbf).UTC().Format(time.RFC3339))
	}
	times.NotBefore = int64(nbf)
	iat, has, r := t.time("iat", keymanager.CheckIssuedAt)
	switch {
	case r != nil:
		return times, r
	case has && now.Add(skew).Before(at(iat)):
		return times, refuse(keymanager.CheckIssuedAt, "the token was issued in the future, at %s", at(iat).UTC().Format(time.RFC3339))
	}
	times.IssuedAt = int64(iat)
	return times, t.checkAudience(rules.Audience)
}

// EffectiveSkew is the leeway that a setting stands for.
func EffectiveSkew(d time.Duration) time.Duration {
	if d <= 0 {
		return DefaultSkew
	}
	return min(d, MaxSkew)
}

func at(seconds float64) time.Time {
	whole := math.Floor(seconds)
	return time.Unix(int64(whole), int64((seconds-whole)*1e9))
}

// latest is the end of the year 9999: what lies beyond is no time, or is in milliseconds.
const latest = 253402300799

// time reads a NumericDate: a number of seconds, possibly with a fraction.
func (t *Token) time(claim string, check keymanager.Check) (seconds float64, has bool, r *keymanager.Refusal) {
	v, has := t.Claims[claim]
	if !has {
		return 0, false, nil
	}
	n, ok := v.(json.Number)
	if !ok {
		return 0, true, refuse(check, "the claim %s is not a number", claim)
	}
	f, err := strconv.ParseFloat(string(n), 64)
	if err != nil || math.IsNaN(f) || f < 0 || f > latest {
		return 0, true, refuse(check, "the claim %s is not a time in seconds since 1970", claim)
	}
	return f, true, nil
}

func (t *Token) checkAudience(want []string) *keymanager.Refusal {
	if len(want) == 0 {
		return nil
	}
	meets := func(v any) bool {
		s, ok := v.(string)
		if ok {
			if slices.Contains(want, s) {
				return true
			}
		}
		return false
	}
	switch aud := t.Claims["aud"].(type) {
	case nil:
		return refuse(keymanager.CheckAudience, "the token names no audience (aud)")
	case []any:
		if slices.ContainsFunc(aud, meets) {
			return nil
		}
	default:
		if meets(aud) {
			return nil
		}
	}
	return refuse(keymanager.CheckAudience, "the token is meant for another audience")
}
