// Package issuer is a third-party key manager that stands outside the API Manager: it signs RS256 tokens in Keycloak's
// shape, serves its keys as a JWKS that can be rotated, and answers introspection and revocation.
package issuer

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// Options configure an Issuer.
type Options struct {
	// Issuer is the iss claim; the endpoints stand below it where Keycloak has them, unless paths say otherwise.
	Issuer string
	// JWKSPath, TokenPath, IntrospectPath and RevokePath are where Handler answers.
	JWKSPath, TokenPath, IntrospectPath, RevokePath string
	// Clients maps a client id to its secret; the token endpoint knows these.
	Clients map[string]string
	// Life is how long a token lives when its claims do not say; 0 is an hour.
	Life time.Duration
}

// Token says what to put into a token. The zero value of a field leaves the claim to its default.
type Token struct {
	ClientID string // azp
	Subject  string // sub; default the client id
	Scope    string
	ID       string // jti; default a new UUID
	IssuedAt time.Time
	Life     time.Duration
	Claims   map[string]any // further claims, which win over those above
	// Opaque gives a reference token instead of a JWT.
	Opaque bool
}

// Issued is a token that was minted.
type Issued struct {
	Token     string
	ID        string
	ClientID  string
	Subject   string
	Scope     string
	IssuedAt  time.Time
	ExpiresAt time.Time
}

type key struct {
	id      string
	private *rsa.PrivateKey
}

// Issuer mints tokens. It is safe for concurrent use.
type Issuer struct {
	o Options

	making sync.Mutex // held while a key is made

	mu       sync.Mutex
	keys     []key // the last one signs; all are published
	opaque   map[string]Issued
	revoked  map[string]bool // by jti, and by opaque token
	jwksHits int
	clients  map[string]string
	// asked counts introspections; asker and its secret are who may ask, "" for anybody.
	asked              int
	asker, askerSecret string
}

// New makes an issuer. Its first key is made when it is needed, because that takes a while.
func New(o Options) *Issuer {
	i := &Issuer{o: o, opaque: map[string]Issued{}, revoked: map[string]bool{}, clients: map[string]string{}}
	maps.Copy(i.clients, o.Clients)
	if i.o.Life == 0 {
		i.o.Life = time.Hour
	}
	return i
}

// Issuer is the iss claim of its tokens.
func (i *Issuer) Issuer() string { return i.o.Issuer }

// JWKSPath is where Handler serves the key set.
func (i *Issuer) JWKSPath() string { return i.o.JWKSPath }

// AddClient registers a client at the token endpoint.
func (i *Issuer) AddClient(id, secret string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.clients[id] = secret
}

// Rotate makes a new signing key. The old ones stay published if keepOld, else their tokens can no longer be verified.
func (i *Issuer) Rotate(keepOld bool) error {
	i.making.Lock()
	defer i.making.Unlock()
	return i.rotate(keepOld)
}

// ready makes the first key.
func (i *Issuer) ready() error {
	i.making.Lock()
	defer i.making.Unlock()
	i.mu.Lock()
	n := len(i.keys)
	i.mu.Unlock()
	if n > 0 {
		return nil
	}
	return i.rotate(false)
}

func (i *Issuer) rotate(keepOld bool) error {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("key manager: make a signing key: %w", err)
	}
	sum := sha256.Sum256(private.N.Bytes())
	k := key{id: base64.RawURLEncoding.EncodeToString(sum[:12]), private: private}
	i.mu.Lock()
	defer i.mu.Unlock()
	if !keepOld {
		i.keys = nil
	}
	i.keys = append(i.keys, k)
	return nil
}

// Mint signs a token.
func (i *Issuer) Mint(t Token) (Issued, error) {
	now := t.IssuedAt
	if now.IsZero() {
		now = time.Now()
	}
	life := t.Life
	if life == 0 {
		life = i.o.Life
	}
	out := Issued{ID: t.ID, ClientID: t.ClientID, Subject: t.Subject, Scope: t.Scope, IssuedAt: now, ExpiresAt: now.Add(life)}
	if out.ID == "" {
		out.ID = uuid.NewString()
	}
	if out.Subject == "" {
		out.Subject = t.ClientID
	}
	if err := i.ready(); err != nil {
		return Issued{}, err
	}
	i.mu.Lock()
	k := i.keys[len(i.keys)-1]
	i.mu.Unlock()
	if t.Opaque {
		out.Token, out.ID = out.ID, ""
		i.mu.Lock()
		i.opaque[out.Token] = out
		i.mu.Unlock()
		return out, nil
	}
	claims := jwt.MapClaims{
		"iss": i.o.Issuer, "sub": out.Subject, "azp": out.ClientID, "aud": "account", "typ": "Bearer",
		"jti": out.ID, "iat": now.Unix(), "exp": out.ExpiresAt.Unix(), "preferred_username": out.Subject,
	}
	if out.Scope != "" {
		claims["scope"] = out.Scope
	}
	for name, v := range t.Claims {
		if v == nil {
			delete(claims, name)
			continue
		}
		claims[name] = v
	}
	unsigned := jwt.NewWithClaims(jwt.SigningMethodRS256, claims)
	unsigned.Header["kid"] = k.id
	signed, err := unsigned.SignedString(k.private)
	if err != nil {
		return Issued{}, fmt.Errorf("key manager: sign a token: %w", err)
	}
	out.Token = signed
	return out, nil
}

// Revoke makes introspection answer inactive for a token, given whole or by its jti.
func (i *Issuer) Revoke(token string) {
	if id, _, err := Identify(token); err == nil && id != "" {
		token = id
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.revoked[token] = true
}

// RequireClient makes introspection answer nobody but a client with its secret.
func (i *Issuer) RequireClient(id, secret string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asker, i.askerSecret = id, secret
}

// Introspections counts the questions about tokens, those of strangers too.
func (i *Issuer) Introspections() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

// JWKSRequests counts the fetches of the key set.
func (i *Issuer) JWKSRequests() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.jwksHits
}

// Identify reads the jti and the expiry of a JWT without verifying it. It fails for a token that is no JWT.
func Identify(token string) (id string, expires time.Time, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", time.Time{}, errors.New("the token is no JWT")
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", time.Time{}, fmt.Errorf("the token's claims: %w", err)
	}
	var claims struct {
		ID  string `json:"jti"`
		Exp int64  `json:"exp"`
	}
	if err := json.Unmarshal(raw, &claims); err != nil {
		return "", time.Time{}, fmt.Errorf("the token's claims: %w", err)
	}
	return claims.ID, time.Unix(claims.Exp, 0), nil
}

// Handler serves the endpoints of the key manager.
func (i *Issuer) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+i.o.JWKSPath, i.serveJWKS)
	if i.o.TokenPath != "" {
		mux.HandleFunc("POST "+i.o.TokenPath, i.serveToken)
	}
	if i.o.IntrospectPath != "" {
		mux.HandleFunc("POST "+i.o.IntrospectPath, i.serveIntrospect)
	}
	if i.o.RevokePath != "" {
		mux.HandleFunc("POST "+i.o.RevokePath, i.serveRevoke)
	}
	return mux
}

func (i *Issuer) serveJWKS(w http.ResponseWriter, _ *http.Request) {
	type jwk struct {
		Kty string `json:"kty"`
		Use string `json:"use"`
		Alg string `json:"alg"`
		Kid string `json:"kid"`
		N   string `json:"n"`
		E   string `json:"e"`
	}
	if err := i.ready(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	i.mu.Lock()
	i.jwksHits++
	set := struct {
		Keys []jwk `json:"keys"`
	}{Keys: []jwk{}}
	for _, k := range i.keys {
		set.Keys = append(set.Keys, jwk{
			Kty: "RSA", Use: "sig", Alg: "RS256", Kid: k.id,
			N: base64.RawURLEncoding.EncodeToString(k.private.N.Bytes()),
			E: base64.RawURLEncoding.EncodeToString(big.NewInt(int64(k.private.E)).Bytes()),
		})
	}
	i.mu.Unlock()
	answer(w, http.StatusOK, set)
}

// serveToken is the client-credentials and password grant (RFC 6749).
func (i *Issuer) serveToken(w http.ResponseWriter, r *http.Request) {
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	i.mu.Lock()
	want, known := i.clients[id]
	i.mu.Unlock()
	if !known || want != secret {
		answer(w, http.StatusUnauthorized, map[string]string{"error": "invalid_client", "error_description": "unknown client or wrong secret"})
		return
	}
	t := Token{ClientID: id, Scope: r.PostFormValue("scope")}
	switch r.PostFormValue("grant_type") {
	case "client_credentials":
	case "password":
		t.Subject = r.PostFormValue("username")
	default:
		answer(w, http.StatusBadRequest, map[string]string{"error": "unsupported_grant_type", "error_description": "use client_credentials or password"})
		return
	}
	issued, err := i.Mint(t)
	if err != nil {
		answer(w, http.StatusInternalServerError, map[string]string{"error": "server_error", "error_description": err.Error()})
		return
	}
	answer(w, http.StatusOK, map[string]any{
		"access_token": issued.Token, "token_type": "Bearer", "scope": issued.Scope,
		"expires_in": int(time.Until(issued.ExpiresAt).Seconds()),
	})
}

func (i *Issuer) serveIntrospect(w http.ResponseWriter, r *http.Request) {
	token := r.PostFormValue("token")
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	i.mu.Lock()
	i.asked++
	stranger := i.asker != "" && (id != i.asker || secret != i.askerSecret)
	i.mu.Unlock()
	if stranger {
		answer(w, http.StatusUnauthorized, map[string]string{"error": "invalid_client", "error_description": "unknown client or wrong secret"})
		return
	}
	i.mu.Lock()
	known, isOpaque := i.opaque[token]
	revoked := i.revoked[token]
	i.mu.Unlock()
	if isOpaque {
		if revoked || time.Now().After(known.ExpiresAt) {
			answer(w, http.StatusOK, map[string]bool{"active": false})
			return
		}
		answer(w, http.StatusOK, introspection(known.ClientID, known.Subject, known.Scope, i.o.Issuer, known.IssuedAt.Unix(), known.ExpiresAt.Unix()))
		return
	}
	claims := jwt.MapClaims{}
	parsed, err := jwt.ParseWithClaims(token, claims, func(t *jwt.Token) (any, error) {
		i.mu.Lock()
		defer i.mu.Unlock()
		for _, k := range i.keys {
			if k.id == t.Header["kid"] {
				return k.private.Public(), nil
			}
		}
		return nil, errors.New("unknown key")
	}, jwt.WithValidMethods([]string{"RS256"}))
	jti, _ := claims["jti"].(string)
	i.mu.Lock()
	revoked = i.revoked[jti]
	i.mu.Unlock()
	if err != nil || !parsed.Valid || revoked {
		answer(w, http.StatusOK, map[string]bool{"active": false})
		return
	}
	iat, _ := claims["iat"].(float64)
	exp, _ := claims["exp"].(float64)
	client, _ := claims["azp"].(string)
	subject, _ := claims["sub"].(string)
	scope, _ := claims["scope"].(string)
	answer(w, http.StatusOK, introspection(client, subject, scope, i.o.Issuer, int64(iat), int64(exp)))
}

func introspection(client, user, scope, issuer string, iat, exp int64) map[string]any {
	return map[string]any{
		"active": true, "client_id": client, "username": user, "sub": user, "scope": scope, "token_type": "Bearer",
		"iss": issuer, "iat": iat, "nbf": iat, "exp": exp,
	}
}

func (i *Issuer) serveRevoke(w http.ResponseWriter, r *http.Request) {
	i.Revoke(r.PostFormValue("token"))
	w.WriteHeader(http.StatusOK)
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the peer went away: nothing to tell it
}

// Endpoints are the paths of the issuer under the names of a key manager's configuration.
func (i *Issuer) Endpoints() map[string]string {
	m := map[string]string{}
	for name, path := range map[string]string{
		"token_endpoint": i.o.TokenPath, "introspection_endpoint": i.o.IntrospectPath, "revoke_endpoint": i.o.RevokePath,
	} {
		if path != "" {
			m[name] = path
		}
	}
	return m
}
