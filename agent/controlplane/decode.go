package controlplane

import "strings"

// The decoders of one row each. They take every spelling that a release of the API Manager is known to use (contract
// rest.md 2, 3, 5); names of members are compared without case.

func (s *scanner) api(a *API) {
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "uuid", "apiuuid":
			s.str(&a.UUID)
		case "apiid", "id":
			s.integer(&a.APIID)
		case "provider":
			s.name(&a.Provider)
		case "name":
			s.str(&a.Name)
		case "version":
			s.name(&a.Version)
		case "context":
			s.str(&a.Context)
		case "policy":
			s.name(&a.Policy)
		case "apitype":
			s.name(&a.APIType)
		case "status":
			s.name(&a.Status)
		case "organization", "tenantdomain":
			s.name(&a.Organization)
		case "isdefaultversion":
			s.boolean(&a.IsDefaultVersion)
		case "urlmappings", "urlmaping", "urlmapping":
			var list []URLMapping
			for s.array(); s.nextElem(); {
				var m URLMapping
				s.urlMapping(&m)
				list = append(list, m)
			}
			if list != nil {
				a.URLMappings = list
			}
		default:
			s.skip()
		}
	}
}

func (s *scanner) urlMapping(m *URLMapping) {
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "authscheme":
			s.name(&m.AuthScheme)
		case "throttlingpolicy":
			s.name(&m.ThrottlingPolicy)
		case "httpmethod":
			s.name(&m.HTTPMethod)
		case "urlpattern":
			s.name(&m.URLPattern)
		case "scopes":
			s.texts(&m.Scopes)
		default:
			s.skip()
		}
	}
}

func (s *scanner) application(a *Application) {
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "uuid", "applicationuuid":
			s.str(&a.UUID)
		case "id", "applicationid":
			s.integer(&a.ID)
		case "name", "applicationname":
			s.str(&a.Name)
		case "subname", "subscriber":
			s.name(&a.SubName)
		case "policy", "applicationpolicy":
			s.name(&a.Policy)
		case "tokentype":
			s.name(&a.TokenType)
		case "organization", "tenantdomain":
			s.name(&a.Organization)
		case "groupids":
			var list []string
			for s.array(); s.nextElem(); {
				var group string
				if s.peek() == '{' {
					for s.object(); s.nextKey(); {
						if string(s.key) == "groupid" {
							s.name(&group)
						} else {
							s.skip()
						}
					}
				} else {
					s.name(&group)
				}
				if group != "" {
					list = append(list, group)
				}
			}
			if list != nil {
				a.GroupIDs = list
			}
		case "attributes":
			var m map[string]string
			for s.object(); s.nextExactKey(); {
				k := s.intern(s.key)
				var v string
				s.name(&v)
				if m == nil {
					m = make(map[string]string, 4)
				}
				m[k] = v
			}
			if m != nil {
				a.Attributes = m
			}
		default:
			s.skip()
		}
	}
}

func (s *scanner) keyMapping(m *KeyMapping) {
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "applicationid":
			s.integer(&m.ApplicationID)
		case "applicationuuid":
			s.name(&m.ApplicationUUID)
		case "consumerkey":
			s.str(&m.ConsumerKey)
		case "keytype":
			s.name(&m.KeyType)
		case "keymanager":
			s.name(&m.KeyManager)
		default:
			s.skip()
		}
	}
}

func (s *scanner) subscription(x *Subscription) {
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "subscriptionid":
			s.integer(&x.SubscriptionID)
		case "subscriptionuuid":
			s.str(&x.SubscriptionUUID)
		case "policyid":
			s.name(&x.PolicyID)
		case "apiid":
			s.integer(&x.APIID)
		case "apiuuid":
			s.name(&x.APIUUID)
		case "appid", "applicationid":
			s.integer(&x.AppID)
		case "applicationuuid", "appuuid":
			s.name(&x.ApplicationUUID)
		case "subscriptionstate":
			s.name(&x.SubscriptionState)
		default:
			s.skip()
		}
	}
}

func (s *scanner) policy(p *Policy) {
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "id", "policyid":
			s.integer(&p.ID)
		case "tenantid":
			s.integer(&p.TenantID)
		case "tenantdomain", "organization":
			s.name(&p.TenantDomain)
		case "name", "policyname":
			s.str(&p.Name)
		case "quotatype":
			s.name(&p.QuotaType)
		case "defaultlimit":
			s.limit(&p.DefaultLimit)
		case "ratelimitcount":
			s.integer(&p.RateLimitCount)
		case "ratelimittimeunit":
			s.name(&p.RateLimitTimeUnit)
		case "burstlimit":
			for s.object(); s.nextKey(); {
				switch string(s.key) {
				case "ratelimitcount":
					s.integer(&p.RateLimitCount)
				case "ratelimittimeunit":
					s.name(&p.RateLimitTimeUnit)
				default:
					s.skip()
				}
			}
		case "stoponquotareach":
			s.boolean(&p.StopOnQuotaReach)
		case "graphqlmaxdepth":
			s.integer(&p.GraphQLMaxDepth)
		case "graphqlmaxcomplexity":
			s.integer(&p.GraphQLMaxComplexity)
		case "applicablelevel":
			s.name(&p.ApplicableLevel)
		case "conditiongroups":
			var list []ConditionGroup
			for s.array(); s.nextElem(); {
				var g ConditionGroup
				s.conditionGroup(&g)
				list = append(list, g)
			}
			if list != nil {
				p.ConditionGroups = list
			}
		default:
			s.skip()
		}
	}
}

func (s *scanner) conditionGroup(g *ConditionGroup) {
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "conditiongroupid":
			s.integer(&g.ID)
		case "defaultlimit", "limit":
			s.limit(&g.Limit)
		case "condition", "conditions":
			var list []Condition
			for s.array(); s.nextElem(); {
				var c Condition
				for s.object(); s.nextKey(); {
					switch string(s.key) {
					case "conditiontype", "type":
						s.name(&c.Type)
					case "name":
						s.name(&c.Name)
					case "value":
						s.name(&c.Value)
					case "isinverted", "inverted", "invertcondition":
						s.boolean(&c.Inverted)
					default:
						s.skip()
					}
				}
				list = append(list, c)
			}
			if list != nil {
				g.Conditions = list
			}
		default:
			s.skip()
		}
	}
}

// limit reads a defaultLimit. Of its three members the one that quotaType names counts; where quotaType is missing,
// the one that is set.
func (s *scanner) limit(dst **Limit) {
	if s.peek() == 'n' {
		s.skip()
		return
	}
	if s.peek() != '{' {
		s.oddity("an object", s.kind(s.peek()))
		s.skip()
		return
	}
	var quota string
	var parts [3]*Limit // requestCount, bandwidth, eventCount
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "quotatype":
			s.name(&quota)
		case "requestcount":
			s.limitPart(&parts[0])
		case "bandwidth":
			s.limitPart(&parts[1])
		case "eventcount":
			s.limitPart(&parts[2])
		default:
			s.skip()
		}
	}
	chosen := -1
	for i, name := range [3]string{"requestCount", "bandwidthVolume", "eventCount"} {
		if parts[i] == nil {
			continue
		}
		if strings.EqualFold(quota, name) || chosen < 0 && quota == "" {
			chosen = i
			if quota == "" {
				quota = name
			}
		}
	}
	out := &Limit{QuotaType: quota}
	if chosen >= 0 {
		*out = *parts[chosen] //nolint:gosec // chosen is an index of parts
		out.QuotaType = quota
	}
	*dst = out
}

func (s *scanner) limitPart(dst **Limit) {
	if s.peek() == 'n' {
		s.skip()
		return
	}
	var l Limit
	var amount int64
	var unit string
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "timeunit":
			s.name(&l.TimeUnit)
		case "unittime":
			s.integer(&l.UnitTime)
		case "requestcount", "eventcount":
			s.integer(&l.Count)
		case "dataamount":
			s.integer(&amount)
		case "dataunit":
			s.name(&unit)
		default:
			s.skip()
		}
	}
	if amount > 0 {
		l.Bytes = bytesOf(amount, unit)
	}
	*dst = &l
}

// bytesOf turns an amount with its unit into bytes, at most the greatest int64. An unknown unit counts as KB, the
// smallest that the API Manager has.
func bytesOf(amount int64, unit string) int64 {
	shift := 10
	switch strings.ToUpper(strings.TrimSpace(unit)) {
	case "B", "BYTE", "BYTES":
		shift = 0
	case "MB":
		shift = 20
	case "GB":
		shift = 30
	case "TB":
		shift = 40
	}
	if amount > (1<<63-1)>>shift {
		return 1<<63 - 1
	}
	return amount << shift
}

func (s *scanner) globalPolicy(p *GlobalPolicy) {
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "id", "policyid":
			s.integer(&p.ID)
		case "tenantid":
			s.integer(&p.TenantID)
		case "tenantdomain", "organization":
			s.name(&p.TenantDomain)
		case "name", "policyname":
			s.str(&p.Name)
		case "keytemplate":
			s.str(&p.KeyTemplate)
		case "siddhiquery":
			s.str(&p.SiddhiQuery)
		default:
			s.skip()
		}
	}
}

func (s *scanner) scope(x *Scope) {
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "name", "scopekey", "key":
			s.str(&x.Name)
		case "displayname":
			s.str(&x.DisplayName)
		case "description":
			s.str(&x.Description)
		case "roles":
			s.texts(&x.Roles)
		default:
			s.skip()
		}
	}
}

func (s *scanner) keyManager(k *KeyManager) {
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "uuid", "id":
			s.str(&k.UUID)
		case "name":
			s.str(&k.Name)
		case "type":
			s.name(&k.Type)
		case "enabled":
			s.boolean(&k.Enabled)
		case "tenantdomain", "organization":
			s.name(&k.Tenant)
		case "tokentype":
			s.name(&k.TokenType)
		case "configuration", "additionalproperties":
			c := s.peek()
			if v, ok := s.value().(map[string]any); ok {
				if len(v) > 0 || k.Configuration == nil {
					k.Configuration = v
				}
			} else if c != 'n' && s.err == nil {
				s.oddity("an object", s.kind(c))
			}
		default:
			s.skip()
		}
	}
}

func (s *scanner) block(b *Block) {
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "api":
			s.texts(&b.API)
		case "application":
			s.texts(&b.Application)
		case "user":
			s.texts(&b.User)
		case "subscription":
			s.texts(&b.Subscription)
		case "custom":
			s.texts(&b.Custom)
		case "ip":
			var list []IPCondition
			for s.array(); s.nextElem(); {
				var c IPCondition
				s.ipCondition(&c)
				list = append(list, c)
			}
			if list != nil {
				b.IP = list
			}
		default:
			s.skip()
		}
	}
}

func (s *scanner) ipCondition(c *IPCondition) {
	active := true
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "id", "conditionid":
			s.integer(&c.ID)
		case "type", "conditiontype":
			s.name(&c.Type)
		case "fixedip":
			s.str(&c.FixedIP)
		case "startingip":
			s.str(&c.StartingIP)
		case "endingip":
			s.str(&c.EndingIP)
		case "tenantdomain", "organization":
			s.name(&c.TenantDomain)
		case "invert":
			s.boolean(&c.Invert)
		case "state":
			s.boolean(&active)
		default:
			s.skip()
		}
	}
	c.Inactive = !active
}

// revoked reads both shapes: the array of 3.x and early 4.x, and the object of later releases.
func (s *scanner) revoked(r *Revoked) {
	if s.peek() == '[' {
		s.revokedTokens(r)
		return
	}
	for s.object(); s.nextKey(); {
		switch string(s.key) {
		case "revokedjwtlist", "list":
			s.revokedTokens(r)
		case "revokedjwtsubjectentitylist", "revokedjwtconsumerkeylist":
			for s.array(); s.nextElem(); {
				var m MassRevocation
				for s.object(); s.nextKey(); {
					switch string(s.key) {
					case "consumerkey":
						s.str(&m.ConsumerKey)
					case "entityid":
						s.str(&m.EntityID)
					case "entitytype":
						s.name(&m.EntityType)
					case "revocationtime", "revocation_time":
						s.integer(&m.Before)
					case "organization", "tenantdomain":
						s.name(&m.Organization)
					default:
						s.skip()
					}
				}
				r.Mass = append(r.Mass, m)
			}
		default:
			s.skip()
		}
	}
}

func (s *scanner) revokedTokens(r *Revoked) {
	for s.array(); s.nextElem(); {
		var t RevokedToken
		for s.object(); s.nextKey(); {
			switch string(s.key) {
			case "jwt_signature", "jwtsignature", "signature":
				s.str(&t.Signature)
			case "expiry_time", "expirytime":
				s.integer(&t.ExpiresAt)
			default:
				s.skip()
			}
		}
		if t.Signature == "" {
			if s.err == nil {
				s.oddity("an entry with jwt_signature", "one without")
			}
			continue
		}
		r.Tokens = append(r.Tokens, t)
	}
}

// stopError carries an error of the caller's own function through the scanner.
type stopError struct{ error }

// list walks a list endpoint's body: the envelope {"count", "list", "pagination"} or a bare array. row is called at the
// begin of each row that starts with open ('{' or '"'); others are passed over as odd. It returns the number of
// elements and, where the envelope has one, the count; -1 otherwise.
func (s *scanner) list(open byte, row func() error) (rows int, count int64) {
	count = -1
	seen := false
	walk := func() {
		for s.array(); s.nextElem(); {
			rows++
			if c := s.need(); c != open {
				if s.err == nil {
					s.oddity("a row that is "+s.kind(open), s.kind(c))
					s.skip()
				}
				continue
			}
			if err := row(); err != nil && s.err == nil {
				s.err = stopError{err}
			}
		}
	}
	switch c := s.need(); c {
	case '[':
		seen = true
		walk()
	case '{':
		for s.object(); s.nextKey(); {
			switch string(s.key) {
			case "count":
				s.integer(&count)
			case "list":
				if seen {
					s.fail("two members \"list\"")
				}
				if c := s.peek(); c != '[' && c != 'n' {
					s.fail("member \"list\" is %s, not an array", s.kind(c))
				}
				seen = true
				walk()
			default:
				s.skip()
			}
		}
	default:
		if s.err == nil {
			s.fail("the body is %s, not a list", s.kind(c))
		}
	}
	if s.err == nil {
		s.finish()
	}
	if s.err == nil && !seen {
		s.fail("the body has no member \"list\"")
	}
	return rows, count
}
